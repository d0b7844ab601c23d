import numpy as np
import pytest
from PIL import Image

from src.data.pictures import decode, is_picture, list_class_folders, list_pictures
from src.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def saved(tmp_path, picture, name="picture.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_pixels_are_those_of_the_file(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    np.testing.assert_array_equal(np.asarray(decode(path)), RGB)


def test_grey_becomes_three_equal_channels(tmp_path):
    pixels = np.asarray(decode(saved(tmp_path, Image.fromarray(RAMP))))
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    pixels = np.asarray(decode(saved(tmp_path, Image.fromarray(deep))))
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_transparency_is_dropped(tmp_path):
    picture = Image.fromarray(np.dstack([RGB, RAMP]))
    np.testing.assert_array_equal(np.asarray(decode(saved(tmp_path, picture))), RGB)


def test_a_palette_with_transparency_becomes_its_colours(tmp_path, recwarn):
    picture = Image.fromarray(RAMP).convert("P")
    path = saved(tmp_path, picture, transparency=bytes(range(256)))
    np.testing.assert_array_equal(np.asarray(decode(path)), np.stack([RAMP] * 3, axis=-1))
    assert not recwarn.list


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = np.asarray(decode(saved(tmp_path, red, "red.jpg", quality=100))).reshape(-1, 3)
    assert (pixels[:, 0] > 240).all()
    assert (pixels[:, 1:] < 15).all()


def test_exif_orientation_is_not_applied_as_in_the_official_evaluation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = saved(tmp_path, Image.new("RGB", (30, 10)), "turned.jpg", exif=exif)
    assert decode(path).size == (30, 10)


def test_the_content_decides_not_the_ending(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "png_inside.JPEG", format="PNG")
    np.testing.assert_array_equal(np.asarray(decode(path)), RGB)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_file_is_named(tmp_path, truncate, format_):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = truncate(saved(tmp_path, Image.fromarray(noise), "cut.jpg", format=format_))
    with pytest.raises(UserError, match=r"The picture .*cut\.jpg cannot be read"):
        decode(path)


def test_other_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    for name, reason in [
        ("text.jpg", "not a picture"),
        ("empty.jpg", "is empty"),
        ("absent.jpg", "no such file"),
        (".", "is a folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            decode(tmp_path / name)


def test_listing_goes_deep_ignores_hidden_and_other_files_and_sorts(tmp_path):
    for name in ("b.JPEG", "a.png", "deep/er/c.webp", ".hidden.jpg", ".folder/d.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.removeprefix(f"{tmp_path}/") for path in list_pictures(tmp_path)]
    assert found == ["a.png", "b.JPEG", "deep/er/c.webp"]
    assert list_class_folders(tmp_path) == ["deep"]
    assert not is_picture("._a.jpg")


def test_listing_follows_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert list_class_folders(tmp_path / "root") == ["cat"]
    assert len(list_pictures(tmp_path / "root")) == 1
