from pathlib import Path

import pytest
from PIL import Image

from src.cli.commands.verify import main as verify
from src.errors import UserError
from tests.cli.tiny import save_image, write_annotations


def run(root, *options):
    return verify(["imagenet", "--root", str(root), *options])


def problems(text):
    return [line for line in text.splitlines() if line.startswith("problem:")]


def test_a_good_set_is_counted(toy_imagenet, capsys):
    assert run(toy_imagenet, "--decode") == 0
    text = capsys.readouterr().out
    assert "train: 60 images in 10 classes, 6 to 6 each" in text
    assert "val: 30 images in 10 classes, 3 to 3 each" in text
    assert text.endswith("no problems found\n")


def test_broken_files_are_named_only_when_decoding(make_tree, truncate, capsys):
    root = make_tree({"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}})
    broken = [truncate(root / "train" / "b" / "1.png"), truncate(root / "val" / "a" / "0.png")]
    assert run(root) == 0
    capsys.readouterr()
    assert run(root, "--decode", "--workers", "2") == 1
    found = problems(capsys.readouterr().out)
    assert len(found) == 2
    assert all(str(path) in line for path, line in zip(broken, found, strict=True))


def test_classes_that_differ_are_named(make_tree, capsys):
    root = make_tree({"train": {"a": 1, "b": 1}, "val": {"a": 1, "c": 1}})
    assert run(root) == 1
    text = capsys.readouterr().out
    assert f"{root}/val/c has no counterpart" in text
    assert "note: val lacks 1 of the 2 classes: b." in text
    assert text.endswith("1 problem\n")


def test_empty_classes_and_missing_folders_are_named(make_tree, capsys, tmp_path):
    root = make_tree({"train": {"a": 1, "empty": 0}})
    assert run(root) == 1
    found = problems(capsys.readouterr().out)
    assert "train/empty holds no images" in found[0]
    assert "val does not exist" in found[1]
    assert run(tmp_path / "absent") == 1
    assert "absent does not exist" in capsys.readouterr().out
    (tmp_path / "flat" / "val").mkdir(parents=True)
    assert run(tmp_path / "flat", "--splits", "val") == 1
    assert "val has no class folders" in capsys.readouterr().out


def test_one_split_can_be_checked_alone(make_tree):
    assert run(make_tree({"val": {"a": 1}}), "--splits", "val") == 0


def test_a_layout_must_be_named():
    with pytest.raises(UserError, match="verify needs LAYOUT"):
        verify([])


def test_exchanged_sizes_are_accepted_only_of_images_turned_by_exif(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says 48x64; the first image is stored as 64x48 and turned, the second is not."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = save_image(tmp_path / "images" / "0.png", 0)
    Image.open(turned).save(turned, exif=exif)
    lying = save_image(tmp_path / "images" / "1.png", 1)
    path = write_annotations(tmp_path / "labels.json", [(48, 64)] * 2)
    given = ["coco", "--root", str(tmp_path), "--splits", "val"]
    given += ["--val-images", "images", "--val-annotations", path.name]
    assert verify(given) == 1
    text = capsys.readouterr().out
    assert f"The image {lying} is 64x48 pixels, but {path} says 48x64." in text
    assert str(turned) not in text
    write_annotations(path, [(64, 48)] * 2)  # as both are stored
    assert verify(given) == 0
