"""Label maps of every kind of PNG, and those that are none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.custom.colours import read_pixels
from src.data.formats.label_maps import read_label_map
from src.decoding import BrokenImageError
from src.errors import UserError

STORED = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)
COUNTED_FROM_ONE = [[255, 0, 1], [2, 255, 0]]


def save(path, values):
    Image.fromarray(values).save(path)
    return path


def save_narrow(path, values, bits):
    """A grey PNG of 1, 2, 4 bits, which Pillow does not write."""
    height, width = values.shape
    places = values[..., None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(places.reshape(height, width * bits), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.fixture
def grey(tmp_path):
    return save(tmp_path / "grey.png", STORED)


def test_classes_as_stored(grey):
    label = read_label_map(grey, 4)
    assert label.dtype == np.uint8
    assert (label == STORED).all()


def test_classes_counted_from_one(grey):
    assert read_label_map(grey, 3, reduce_zero_label=True).tolist() == COUNTED_FROM_ONE


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_narrow_grey_is_not_stretched(tmp_path, bits):
    values = np.arange(15, dtype=np.uint8).reshape(3, 5) % 2**bits
    label = read_label_map(save_narrow(tmp_path / "narrow.png", values, bits), 16)
    assert (label == values).all()


def test_alpha_does_not_matter(tmp_path):
    Image.merge("LA", [Image.fromarray(STORED), Image.new("L", (3, 2), 9)]).save(tmp_path / "a.png")
    assert (read_label_map(tmp_path / "a.png", 4) == STORED).all()


def test_palette_means_numbers_not_colours(tmp_path):
    image = Image.fromarray(STORED)
    image.putpalette([250, 0, 0] * 256)
    assert image.mode == "P"
    image.save(tmp_path / "palette.png")
    label = read_label_map(tmp_path / "palette.png", 3, reduce_zero_label=True)
    assert label.tolist() == COUNTED_FROM_ONE


def test_sixteen_bits(tmp_path):
    path = save(tmp_path / "deep.png", STORED.astype(np.uint16))
    assert read_label_map(path, 3, reduce_zero_label=True).tolist() == COUNTED_FROM_ONE
    wide = save(tmp_path / "wide.png", np.array([[256, 0]], dtype=np.uint16))
    with pytest.raises(UserError, match=r"has the value 256 in 1 pixels"):
        read_label_map(wide, 3, reduce_zero_label=True)


def test_one_bit(tmp_path):
    path = tmp_path / "bits.png"
    Image.fromarray(np.array([[True, False]])).save(path)
    assert read_label_map(path, 2).tolist() == [[1, 0]]


@pytest.mark.parametrize(("num_classes", "reduce", "value"), [(3, False, 3), (2, True, 3)])
def test_value_above_the_classes(grey, num_classes, reduce, value):
    with pytest.raises(UserError) as error:
        read_label_map(grey, num_classes, reduce_zero_label=reduce)
    message = str(error.value)
    assert str(grey) in message
    assert f"has the value {value} in 1 pixels" in message
    assert ("expected 1 to 2" if reduce else "expected 0 to 2") in message


def test_colours_are_refused(tmp_path):
    path = save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"rgb\.png holds colours"):
        read_label_map(path, 4)


def test_floating_point_numbers_are_refused(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 4), 300.5, np.float32)).save(path)
    for read in (lambda: read_label_map(path, 3), lambda: read_pixels(str(path))):
        with pytest.raises(UserError, match="holds floating-point numbers"):
            read()


def test_broken_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(BrokenImageError, match=r"broken\.png cannot be read"):
        read_label_map(tmp_path / "broken.png", 4)
