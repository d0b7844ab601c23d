import numpy as np
import pytest
from PIL import Image, ImageOps

from src.decoding import decode
from src.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_pixels_are_unchanged(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    np.testing.assert_array_equal(np.asarray(decode(path)), RGB)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    pixels = np.asarray(decode(saved(tmp_path, Image.fromarray(RAMP))))
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    pixels = np.asarray(decode(saved(tmp_path, Image.fromarray(deep))))
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path):
    path = saved(tmp_path, Image.fromarray(RAMP.astype(np.uint16)))
    assert np.asarray(decode(path)).max() == 0


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 257,
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) / 255,
    ],
    ids=["integers of 8 bits", "integers of 16 bits", "floats to 255", "floats to 1"],
)
def test_32_bit_values_are_converted_to_8_bits(tmp_path, values):
    pixels = np.asarray(decode(saved(tmp_path, Image.fromarray(values), "deep.tif")))
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


@pytest.mark.parametrize("value", [-1, 300, np.nan])
def test_floats_out_of_range_are_an_error(tmp_path, value):
    values = np.full((4, 4), 0.5, dtype=np.float32)
    values[0, 0] = value
    path = saved(tmp_path, Image.fromarray(values), "deep.tif")
    with pytest.raises(
        UserError, match=r"deep\.tif cannot be read: .*expected floating-point values from 0 to 1"
    ):
        decode(path)


def test_transparency_is_dropped(tmp_path):
    image = Image.fromarray(np.dstack([RGB, RAMP]))
    np.testing.assert_array_equal(np.asarray(decode(saved(tmp_path, image))), RGB)


def test_a_palette_with_transparency_becomes_its_colours(tmp_path, recwarn):
    image = Image.fromarray(RAMP).convert("P")
    path = saved(tmp_path, image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(np.asarray(decode(path)), np.stack([RAMP] * 3, axis=-1))
    assert not recwarn.list


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = np.asarray(decode(saved(tmp_path, red, "red.jpg", quality=100))).reshape(-1, 3)
    assert (pixels[:, 0] > 240).all()
    assert (pixels[:, 1:] < 15).all()


def test_exif_orientation_is_ignored_as_in_the_official_evaluation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    path = saved(tmp_path, Image.new("RGB", (30, 10)), "turned.jpg", exif=exif)
    assert decode(path).size == (30, 10)


@pytest.mark.parametrize("numbers", [np.uint8, np.uint16])
def test_grey_images_of_any_depth_are_turned_upright(tmp_path, numbers):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = RAMP[:9].astype(numbers) * (257 if numbers is np.uint16 else 1)
    for name in ("turned.png", "turned.tif"):
        path = saved(tmp_path, Image.fromarray(deep), name, exif=exif)
        turned = decode(path, upright=True)
        np.testing.assert_array_equal(np.asarray(turned)[..., 0], np.rot90(RAMP[:9], -1))
        later = ImageOps.exif_transpose(decode(path))  # like the detection dataset
        np.testing.assert_array_equal(np.asarray(later), np.asarray(turned))


def test_the_format_is_recognised_by_content(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "png_inside.JPEG", format="PNG")
    np.testing.assert_array_equal(np.asarray(decode(path)), RGB)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_error_names_a_truncated_file(tmp_path, truncate, format_):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = truncate(saved(tmp_path, Image.fromarray(noise), "cut.jpg", format=format_))
    with pytest.raises(UserError, match=r"The image .*cut\.jpg cannot be read"):
        decode(path)


def test_error_names_other_files_with_the_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for name, reason in [
        ("text.jpg", "its content is not JPEG, PNG"),
        ("empty.jpg", "is empty"),
        ("absent.jpg", "no such file"),
        (".", "is a folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            decode(tmp_path / name)
