"""Toy scenes as LVIS, OpenImages, PASCAL VOC and CrowdHuman."""

from pathlib import Path

import pytest

from src import data
from src.cli.commands.prepare import main as prepare
from src.cli.commands.verify import main as verify
from src.data.datamodules.coco import COCODataModule
from src.data.toy.boxes import LAYOUTS
from src.data.toy.scenes import SHAPES
from tests.data.detection_trees import DATA_MODULES


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    settings = ["--train", "4", "--val", "6", "--predict", "1", "--size", "64"]
    assert prepare(["toy", "--root", str(folder), *settings, "--layouts", *LAYOUTS]) == 0
    return folder


def validation(root: Path, name: str) -> COCODataModule:
    module = getattr(data, DATA_MODULES[name])(root=str(root / name), num_workers=0)
    module.setup("validate")
    return module


def annotations(module: COCODataModule) -> list[dict]:
    return [
        item
        for batch in module.val_dataloader()
        for image in batch["annotations"]
        for item in image
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_verify_finds_no_problems(root: Path, name: str, capsys) -> None:
    assert verify([name, "--root", str(root / name)]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_some_classes_of_lvis_are_not_checked_in_every_image(root: Path) -> None:
    module = validation(root, "lvis")
    assert module.class_names == list(SHAPES)
    frequencies = module.class_facts.frequencies
    labels = [label for batch in module.val_dataloader() for label in batch["image_labels"]]
    absent = {number for image in labels for number in image.absent}
    assert absent == set(range(len(SHAPES)))
    rare = frequencies.index("r")
    assert sum(rare in image.absent for image in labels) < len(labels) / 2
    assert any(image.not_exhaustive for image in labels)


def test_open_images_has_groups_and_more_general_classes(root: Path) -> None:
    module = validation(root, "openimages")
    assert module.class_names == [*(name.capitalize() for name in SHAPES), "Curved", "Angular"]
    circle, square = (module.class_names.index(name) for name in ("Circle", "Square"))
    assert module.class_facts.ancestors[circle] == (10,)
    assert module.class_facts.ancestors[square] == (11,)
    assert any(item.get("is_group_of") for item in annotations(module))
    first = next(iter(module.val_dataloader()))
    (labels,) = first["image_labels"]
    present = {item["category_id"] for item in first["annotations"][0]}
    assert set(labels.present) == present
    assert set(labels.absent) == set(range(len(SHAPES))) - present


@pytest.mark.parametrize("name", ["voc", "crowdhuman"])
def test_some_objects_are_to_be_ignored(root: Path, name: str) -> None:
    ignored = [item.get("ignore", 0) for item in annotations(validation(root, name))]
    assert 0 < sum(ignored) < len(ignored) / 2
