"""Names of the files written by predict."""

import os

import pytest

from src.callbacks.output_names import OutputNames


def names_of(*images: str, root: str | None = "in") -> dict[str, str]:
    name = OutputNames(images, root)
    return {image: str(name(image)) for image in images}


def test_outputs_have_the_names_and_subfolders_of_their_images():
    names = names_of("in/one.jpg", "in/sub/two.png")
    assert names == {"in/one.jpg": "one.png", "in/sub/two.png": "sub/two.png"}


def test_images_that_differ_in_their_extension_keep_it():
    names = names_of("in/a.jpg", "in/a.png", "in/sub/a.png")
    assert list(names.values()) == ["a.jpg.png", "a.png.png", "sub/a.png"]


def test_a_name_with_its_extension_can_clash_with_another():
    names = names_of("in/a.jpg", "in/a.png", "in/a.jpg.png")
    assert list(names.values()) == ["a.jpg.png", "a.png.png", "a.jpg.png.png"]


@pytest.mark.parametrize(
    "images",
    [
        ("in/A.jpg", "in/a.jpg"),  # one file on case-insensitive file systems
        ("in/A.jpg", "in/a.jpg", "in/A.png", "in/a.jpg.png"),
        ("in/Sub/a.jpg", "in/sub/a.jpg"),
        ("in/caf\u00e9.jpg", "in/cafe\u0301.jpg"),  # one file on macOS
        ("in/x.jpg", "in/x.png/b.jpg"),  # a folder with the name of a result
        ("in/x.jpg", "in/x.png/b.jpg", "in/x.jpg.png/c.jpg"),
        tuple(f"in/{'a' * 251}.{ending}" for ending in ("jpg", "png", "bmp")),
        tuple(f"in/{'é' * 120}{number}.jpg" for number in range(3)),
        (f"in/{'a' * 250}1.jpg", f"in/{'a' * 250}2.jpg"),
        tuple(f"in/a{'.png' * number}" for number in range(1, 12)),
    ],
)
def test_every_image_has_its_own_file(images):
    names = names_of(*images)
    folded = [name.casefold().encode() for name in names.values()]
    assert len(set(folded)) == len(images)
    assert not any(other.startswith(name + b"/") for name in folded for other in folded)
    assert all(len(os.fsencode(part)) <= 255 for name in names.values() for part in name.split("/"))
    assert names == names_of(*reversed(images))  # for any order


def test_odd_names_are_kept():
    assert names_of("in/two words.jpg", "in/\u732b.jpg", "in/line\nbreak.jpg", "in/\udce9.jpg") == {
        "in/two words.jpg": "two words.png",
        "in/\u732b.jpg": "\u732b.png",
        "in/line\nbreak.jpg": "line\nbreak.png",
        "in/\udce9.jpg": "\udce9.png",
    }


def test_equal_names_in_different_folders_without_a_root():
    names = names_of("x/cat.png", "y/cat.png", "z/cat_1.jpg", root=None)
    assert len(set(names.values())) == 3
    assert not any("/" in name for name in names.values())


@pytest.mark.parametrize("image", ["../up.jpg", "/etc/motd.jpg", "in/../../up.jpg", "other/.."])
def test_outputs_stay_in_their_folder(image: str):
    result = OutputNames([image], root="in")(image)
    assert not result.is_absolute()
    assert os.path.normpath(result) == str(result)
    assert ".." not in result.parts


def test_output_name_of_a_single_image():
    assert str(OutputNames(["in/sub/a.jpg"], root="in/sub/a.jpg")("in/sub/a.jpg")) == "a.png"
    assert str(OutputNames(["in/sub/a.jpg"], root=None)("in/sub/a.jpg")) == "a.png"


def test_images_outside_the_root_keep_their_extension():
    assert str(OutputNames([], root="in")("other/a.jpg")) == "a.jpg.png"
