"""``prepare from-folder`` with images and their labels, which are no classes."""

import json
from pathlib import Path

import pytest

from src.cli import main
from tests.cli.tiny import save_image


def draw(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        save_image(folder / name, seed, (20, 16))


def prepare(root: Path, tmp_path: Path) -> int:
    return main(["prepare", "from-folder", str(root), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("images", "labels", "end", "kind", "command"),
    [
        ("images", "labels", ".png", "label maps", "from-masks"),
        ("images", "masks", "_mask.png", "label maps", "from-masks"),
        ("JPEGImages", "SegmentationClass", ".png", "label maps", "from-masks"),
        ("images/train", "annotations/train", ".png", "label maps", "from-masks"),
        ("train/images", "train/labels", ".png", "label maps", "from-masks"),
        ("images", "labels", ".txt", "YOLO label files", "from-yolo"),
        ("images/train", "labels/train", ".txt", "YOLO label files", "from-yolo"),
        ("train/images", "train/labels", ".txt", "YOLO label files", "from-yolo"),
    ],
)
def test_images_and_labels_lead_to_their_command(
    images: str,
    labels: str,
    end: str,
    kind: str,
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "in"
    stems = ("a", "b_1", "c")
    draw(root / images, *(f"{stem}.jpg" for stem in stems))
    (root / labels).mkdir(parents=True)
    if end == ".txt":
        for stem in stems:
            (root / labels / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (root / labels / "classes.txt").write_text("cat\n")
    else:
        draw(root / labels, *(f"{stem}{end}" for stem in stems))
    assert prepare(root, tmp_path) == 2
    error = capsys.readouterr().err
    assert f" has {kind} of the images; use `python -m src prepare {command} {root}`." in error
    assert not (tmp_path / "out").exists()


def test_images_and_coco_annotations_lead_to_from_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw(root / "images", "1.jpg", "2.jpg")
    file = root / "annotations" / "instances.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert prepare(root, tmp_path) == 2
    assert f"prepare from-coco {file}`. If both are classes, rename" in capsys.readouterr().err


def test_classes_may_have_these_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    draw(root / "photos", "1.jpg", "2.jpg", "3.jpg")
    draw(root / "labels", "a.jpg", "b.jpg", "1.jpg")  # photos of bottle labels
    assert prepare(root, tmp_path) == 0
    assert "  labels: 2 + 1\n  photos: 2 + 1\n" in capsys.readouterr().out
    draw(root / "label", "1.jpg", "2.jpg", "3.jpg")
    (root / "photos").rename(root / "portrait")  # the same names, in folders of other names
    assert prepare(root, tmp_path) == 0
