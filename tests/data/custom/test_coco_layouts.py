"""COCO annotation files by split, as labelling tools export them, and images left out."""

import json
from pathlib import Path

import pytest
import yaml

from src.cli import build, main
from tests.cli.tiny import save_image, write_annotations


def draw(folder: Path, annotations: Path, count: int = 3, **changes) -> None:
    """Images of a folder and their annotation file."""
    for number in range(count):
        save_image(folder / f"{number}.png", number)
    write_annotations(annotations, [(64, 48)] * count, **changes)


def from_coco(tmp_path: Path, *given: str) -> tuple[int, dict]:
    out = tmp_path / "out"
    status = main(["prepare", "from-coco", *given, "--out", str(out), "--name", "x"])
    recipe = out / "x.yaml"
    return status, yaml.safe_load(recipe.read_text())["data"]["init_args"] if not status else {}


@pytest.mark.parametrize(
    "splits", [("train", "valid", "test"), ("Train", "Val"), ("train", "test")]
)
@pytest.mark.parametrize("beside", [True, False])
def test_splits_with_a_file_each_are_used_as_they_are(
    beside: bool, splits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for split in splits:
        file = (
            f"{split}/_annotations.coco.json" if beside else f"annotations/instances_{split}.json"
        )
        draw(root / split, root / file)
    status, data = from_coco(tmp_path, str(root))
    assert status == 0
    text = capsys.readouterr().out
    expected = {
        "valid": "3 training, 3 validation and 3 test images;",
        "Val": "3 training and 3 validation images;",
        "test": "2 training, 1 validation and 3 test images;",
    }
    assert expected[splits[1]] in text
    assert data["train_images"] == str(root / splits[0])
    assert ("test_annotations" in data) == (splits[-1] == "test")


def test_a_folder_without_a_file_for_training_is_refused_with_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw(root / "valid", root / "valid" / "_annotations.coco.json")
    assert from_coco(tmp_path, str(root))[0] == 2
    assert "found: valid/_annotations.coco.json" in capsys.readouterr().err
    draw(root / "train", root / "train" / "a.json")
    draw(root / "train", root / "train" / "b.json")
    assert from_coco(tmp_path, str(root))[0] == 2
    assert "several files of the train split: train/a.json and train/b.json" in (
        capsys.readouterr().err
    )


def test_images_are_found_beside_the_file_and_other_splits_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for split in ("train", "valid"):
        draw(root / split, root / split / "_annotations.coco.json")
    assert from_coco(tmp_path, str(root / "train" / "_annotations.coco.json"))[0] == 0
    text = capsys.readouterr().out
    assert f"{root}/valid/_annotations.coco.json is not used; give {root}" in text


def test_a_folder_of_images_that_does_not_exist_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw(root, root / "a.json")
    assert from_coco(tmp_path, str(root / "a.json"), "--images", str(root / "x"))[0] == 2
    assert f"The folder {root}/x of --images does not exist." in capsys.readouterr().err


def test_a_name_with_other_capital_letters_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw(root, root / "a.json")
    (root / "2.png").rename(root / "2.PNG")
    assert from_coco(tmp_path, str(root / "a.json"))[0] == 2
    text = capsys.readouterr().err
    assert "1 of 3 images of" in text
    assert f"a.json is not in {root}; the first is {root}/2.png. There is 2.PNG, with" in text


@pytest.mark.parametrize("split", ["", "train"])
def test_annotations_in_a_folder_of_no_classes_lead_to_from_coco(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw(root / split, root / split / "a.json")
    (root / "valid").mkdir()
    assert main(["prepare", "from-folder", str(root)]) == 2
    text = capsys.readouterr().err
    assert f"a.json is a COCO annotation file; use `python -m src prepare from-coco {root}" in text


def test_classes_come_from_their_names_where_there_is_no_annotation_file(tmp_path: Path) -> None:
    recipe = "configs/detection/mask_rcnn_internimage_nano_laptop.yaml"
    given = ["--data.root", str(tmp_path), "--data.class_names", "[a, b, c]"]
    assert build(["--config", recipe, *given]).model.num_classes == 3


def test_prepare_counts_the_images_that_training_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    sizes = [(64, 48), (64, 24), (24, 64), (64, 48), (64, 48)]
    for number, size in enumerate(sizes):
        save_image(root / f"{number}.png", number, size)
    path = write_annotations(root / "labels.json", sizes)
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    path.write_text(json.dumps(content))
    status, data = from_coco(tmp_path, str(path), "--val-annotations", str(path))
    assert status == 0
    text = capsys.readouterr().out
    assert "2 training and 5 validation images" in text
    assert "2 of 5 training images are left out: with a side below 32 pixels" in text
    assert "1 of 5 training images is left out: without annotations (data.keep_empty)" in text
    assert data["batch_size"] == 2
