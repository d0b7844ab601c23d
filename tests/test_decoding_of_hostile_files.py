"""Untrusted image files: no programs are started, nothing hangs, memory is limited."""

import ast
import io
import logging
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli import main
from src.data.formats.label_maps import read_label_map
from src.decoding import MAX_PIXELS, BrokenImageError, decode

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
# Rotated by 90 degrees.
SIX = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, colour=2, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def small_png(*chunks):
    return png(4, 3, *chunks, pixels=(b"\0" + bytes(12)) * 3)


def encoded(image, format_="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def jpeg(**options):
    return encoded(Image.new("RGB", (30, 20), (200, 30, 30)), **options)


def with_exif(block):
    """A JPEG of 30 by 20 pixels with this APP1 segment."""
    plain = jpeg()
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


@pytest.fixture
def written(tmp_path):
    def write(content, name="image.jpg"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_only_one_module_opens_image_files():
    root = Path(__file__).parents[1] / "src"
    openers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("Image.open", "cv2.imread", "PIL.Image.open", "read_image", "imread"):
                openers.add(str(path.relative_to(root)))
    assert openers == {"decoding.py"}


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_postscript_does_not_start_ghostscript(tmp_path, monkeypatch, capsys, ending):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho started >> {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / f"a.{ending}").write_bytes(POSTSCRIPT)
    command = ["prepare", "from-folder", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"a.{ending} cannot be read: its content is not JPEG" in capsys.readouterr().err
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("format_", ["GIF", "JPEG2000", "PCX", "TGA", "PDF", "ICO", "DDS"])
def test_other_formats_are_refused(written, format_):
    path = written(encoded(Image.new("RGB", (32, 32)), format_), "image.png")
    with pytest.raises(BrokenImageError, match=r"image\.png cannot be read: its content is not"):
        decode(path)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "MPO"])
def test_supported_formats_are_read(written, format_):
    assert decode(written(encoded(Image.new("RGB", (32, 16)), format_))).size == (32, 16)


def test_a_damaged_index_of_further_images_is_ignored(written):
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    start = content.index(b"MPF\0")
    for damage in range(4, 60, 5):
        broken = content[: start + damage] + b"\xee\xff\xee" + content[start + damage + 3 :]
        pixel = decode(written(broken)).getpixel((5, 5))
        assert pixel[0] > 200 > 50 > pixel[2]


@pytest.mark.parametrize("kind", ["fifo", "link to a device", "socket"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        monitor = socket.socket(socket.AF_UNIX)
        monitor.bind(str(path))
        monitor.close()
    else:
        path.symlink_to("/dev/zero")
    for read in (decode, lambda path: read_label_map(path, 3)):
        with pytest.raises(BrokenImageError, match=r"x\.png cannot be read: it is not a regular"):
            read(path)


@pytest.mark.parametrize(
    "block",
    [
        SIX[:-9],
        SIX[:6] + b"XX" + SIX[8:],
        SIX.replace(b"\0\x03\0\0", b"\0\x63\0\0"),  # an unknown type
        SIX.replace(b"\0\x06\0\0", b"\0\x09\0\0"),  # there is no orientation 9
        SIX.replace(b"\0\x03\0\0\0\x01", b"\0\x02\0\0\0\x02"),  # text
        SIX.replace(b"\0\0\0\x08\0\x01", b"\xff\xff\xff\xff\0\x01"),
        b"Exif\0\0" + bytes(range(256)),
        b"Exif\0\0",
    ],
)
def test_images_with_damaged_exif_data_are_read(written, block):
    path = written(with_exif(block))
    assert decode(path, upright=True).size == (30, 20)
    assert decode(written(with_exif(SIX)), upright=True).size == (20, 30)


def test_damaged_exif_data_are_reported_once(written, caplog, monkeypatch):
    monkeypatch.setattr("src.decoding._warned", set())
    damaged = with_exif(SIX[:6] + b"XX" + SIX[8:])
    with caplog.at_level(logging.WARNING):
        for name in ("a.jpg", "b.jpg"):
            decode(written(damaged, name), upright=True)
    assert [record.message.split(" are damaged")[0][-5:] for record in caplog.records] == ["a.jpg"]


def test_images_above_the_limit_are_refused_by_their_header(written):
    assert decode(written(jpeg())).size == (30, 20)
    assert MAX_PIXELS >= 108_000_000
    for content in (png(13000, 13000), png(60000, 60000), png(2**31 - 1, 2**31 - 1)):
        path = written(content, "large.png")
        for read in (decode, lambda path: read_label_map(path, 3)):
            with pytest.raises(BrokenImageError, match=r"large\.png .* pixels.*data\.max_pixels"):
                read(path)
    with pytest.raises(BrokenImageError, match="30x20 pixels"):
        decode(written(jpeg()), max_pixels=599)
    assert decode(written(jpeg()), max_pixels=600).size == (30, 20)


def test_max_pixels_can_exceed_the_limit_of_pillow(written):
    wide = encoded(Image.new("1", (20000, 9500)), "PNG")  # 190 million
    with pytest.raises(BrokenImageError, match=r"(190000000|20000x9500) pixels"):
        decode(written(wide))
    with pytest.raises(BrokenImageError, match="truncated"):
        decode(written(wide[: len(wide) // 2]), max_pixels=200_000_000)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_error_names_images_without_pixels(written, size):
    with pytest.raises(BrokenImageError, match=r"image\.jpg cannot be read"):
        decode(written(png(*size)))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_large_compressed_text_is_a_one_line_error(written, name):
    packed = zlib.compress(bytes(5_000_000))
    body = b"XML:com.adobe.xmp\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + packed
    path = written(small_png((name, body)), "bomb.png")
    with pytest.raises(
        BrokenImageError, match=r"bomb\.png cannot be read: its compressed text or colour"
    ):
        decode(path)


def test_files_that_are_too_large_are_not_read(written):
    path = written(encoded(Image.new("RGB", (8, 8)), "WEBP"))
    os.truncate(path, 2**40)
    with pytest.raises(BrokenImageError, match="it has 1099511627776 bytes"):
        decode(path)


def test_error_names_circular_links(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(BrokenImageError, match=r"x\.png cannot be read: Too many levels"):
        decode(tmp_path / "x.png")


@pytest.mark.parametrize("progressive", [True, False])
def test_thousands_of_scans_are_refused(written, progressive):
    content = jpeg(progressive=progressive)
    start = content.rindex(b"\xff\xda")
    scan = content[start:-2]
    path = written(content[:start] + scan * 3000 + content[-2:])
    with pytest.raises(BrokenImageError, match=r"30\d\d scans"):
        decode(path)
    assert decode(written(content)).size == (30, 20)


@pytest.mark.parametrize("filling", [b"\xff\xe5\0\2", b"\xff", b"\xff\x01", b"\xff\xd0"])
def test_millions_of_segments_are_refused_at_once(written, filling):
    content = jpeg()
    path = written(content[:2] + filling * 3_000_000 + content[2:])
    with pytest.raises(BrokenImageError, match=r"more than 20000 segments|no marker|cannot be"):
        decode(path)
    some = content[:2] + b"\xff\xe5\0\2" * 1000 + b"\xff" * 1000 + content[2:]
    assert decode(written(some)).size == (30, 20)


@pytest.mark.parametrize("name", [b"tEXt", b"abCd"])
def test_millions_of_chunks_are_refused_at_once(written, name):
    path = written(small_png(*[(name, b"a\0b")] * 1000))
    assert decode(path).size == (4, 3)
    content = path.read_bytes()
    one = chunk(name, b"a\0b")
    path = written(content.replace(one, one * 500))
    with pytest.raises(BrokenImageError, match="more than 20000 chunks"):
        decode(path)


def test_no_memory_is_allocated_for_a_claimed_chunk_length(written):
    content = small_png()
    place = content.index(b"IEND") - 4
    path = written(content[:place] + b"\x7f\xff\xff\xff" + content[place + 4 :])
    _, before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, before))
    try:
        assert decode(path).size == (4, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, before))


def test_tiles_larger_than_the_limit_are_refused(written):
    def tiff(tile):
        tags = {256: 32, 257: 32, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
        tags |= {324: 8 + 2 + 12 * 10 + 4, 325: 100}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        pixels = zlib.compress(bytes(tile * tile)) if tile < 1000 else bytes(100)
        head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        return head + entries + bytes(4) + pixels.ljust(100, b"\0")

    assert decode(written(tiff(64))).size == (32, 32)
    with pytest.raises(BrokenImageError, match=r"image\.jpg cannot be read: it has 65536x65536"):
        decode(written(tiff(65536)))


@pytest.mark.parametrize("pieces", [{"depth": 16, "colour": 0}, {"depth": 1, "colour": 0}])
def test_error_names_images_with_damaged_pixels(written, pieces):
    with pytest.raises(BrokenImageError, match=r"image\.jpg cannot be read"):
        decode(written(png(40, 40, pixels=b"\x07" * 9, **pieces)))


def test_the_first_frame_of_animations_is_read(written):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for format_ in ("PNG", "WEBP"):
        content = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
        red, _, blue = decode(written(content)).getpixel((3, 3))
        assert red > 200 > 50 > blue


@pytest.mark.parametrize("name", ["a" * 5000 + ".jpg", "a\0b.jpg"])
def test_invalid_names_are_one_line_errors(name):
    with pytest.raises(BrokenImageError, match="cannot be read"):
        decode(name)


def test_error_names_the_file_if_memory_is_exhausted(written, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("src.decoding.to_rgb", fail)
    with pytest.raises(ValueError, match=r"not enough memory to read the image .*image\.jpg"):
        decode(written(jpeg()))


def test_images_of_any_depth_are_read_without_wider_copies(written):
    deep = np.full((3, 4), 80 * 256, np.uint16)
    assert decode(written(encoded(Image.fromarray(deep), "PNG"))).getpixel((0, 0)) == (80, 80, 80)
