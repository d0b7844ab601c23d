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
    (tmp_path / "link.jpg").symlink_to("deleted.jpg")
    for name, reason in [
        ("text.jpg", "its content is not JPEG, PNG"),
        ("empty.jpg", "is empty"),
        ("link.jpg", "is a link to deleted.jpg, which does not exist"),
        ("absent.jpg", "no such file"),
        (".", "is a folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            decode(tmp_path / name)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_file_is_decoded_at_a_reduced_size(tmp_path, factor, options):
    asked = []
    path = saved(tmp_path, Image.new("RGB", (101, 67), (200, 80, 40)), "image.jpg", **options)
    image = decode(path, reduce=lambda *size: asked.append(size) or factor)
    assert asked == [(101, 67)]
    assert image.size == (-(-101 // factor), -(-67 // factor))
    np.testing.assert_allclose(np.asarray(image).reshape(-1, 3).mean(0), (200, 80, 40), atol=3)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_files_of_other_modes_are_reduced_too(tmp_path, mode):
    image = decode(saved(tmp_path, Image.new(mode, (64, 32)), "i.jpg"), reduce=lambda *_: 4)
    assert (image.mode, image.size) == ("RGB", (16, 8))


def test_other_formats_are_decoded_at_full_size(tmp_path):
    asked = []
    path = saved(tmp_path, Image.fromarray(RGB))
    pixels = np.asarray(decode(path, reduce=lambda *size: asked.append(size) or 8))
    np.testing.assert_array_equal(pixels, RGB)
    assert asked == [(16, 16)]


@pytest.mark.parametrize("size", [(64, 32), (65, 32)])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_turned_images_are_reduced_if_no_pixel_is_cut(tmp_path, size, turn):
    exif, asked = Image.Exif(), []
    exif[0x0112] = turn
    path = saved(tmp_path, Image.new("RGB", size), "turned.jpg", exif=exif)
    image = decode(path, upright=True, reduce=lambda *upright: asked.append(upright) or 4)
    upright = size[::-1] if turn == 6 else size
    assert asked == [upright]
    is_reduced = turn == 1 or size == (64, 32)
    assert image.size == (tuple(-(-side // 4) for side in upright) if is_reduced else upright)


def test_a_truncated_file_is_refused_at_a_reduced_size_too(tmp_path, truncate):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = truncate(saved(tmp_path, Image.fromarray(noise), "image.jpg"))
    with pytest.raises(UserError, match="truncated"):
        decode(path, reduce=lambda *_: 8)
