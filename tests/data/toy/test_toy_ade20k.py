"""Toy scenes in the ADE20K layout, and the check of such folders."""

import numpy as np
import pytest
from PIL import Image

from src.cli.commands.verify import main as verify
from src.data import ADE20KDataModule
from src.data.classes.class_names import read_class_names
from src.data.toy.ade20k import TOY_CLASSES, write_toy_ade20k
from src.data.toy.layout import ToySettings

SETTINGS = ToySettings(train=2, val=1, predict=1, size=32)


@pytest.fixture
def root(tmp_path):
    assert write_toy_ade20k(tmp_path / "ade20k", SETTINGS)
    return tmp_path / "ade20k"


@pytest.fixture
def names(root):
    return ["--root", str(root), "--class-names", str(root / "classes.txt")]


def test_layout_and_labels(root):
    assert len(list((root / "images" / "training").glob("*.jpg"))) == 8
    assert len(list((root / "predict").glob("*.jpg"))) == 1
    labels = [np.array(Image.open(p)) for p in root.glob("annotations/*/*.png")]
    assert len(labels) == 8 + 2
    for label in labels:
        assert label.shape == (32, 32)
        assert {1} < set(np.unique(label).tolist()) <= set(range(1, len(TOY_CLASSES) + 1))
    assert read_class_names(str(root / "classes.txt")) == list(TOY_CLASSES)


def test_the_data_module_reads_it(root):
    data = ADE20KDataModule(
        str(root), class_names=str(root / "classes.txt"), crop_size=(32, 32), num_workers=0
    )
    data.setup("fit")
    assert data.num_classes == 11
    assert next(iter(data.train_dataloader()))["label"].max() < 255


def test_again_draws_nothing(root):
    assert not write_toy_ade20k(root, SETTINGS)


def test_verify_counts_pairs_and_classes(names, capsys):
    assert verify(["ade20k", *names]) == 0
    printed = capsys.readouterr().out
    assert "training: 8 pairs" in printed
    assert "no problems found" in printed


def test_verify_names_what_is_wrong(root, names, capsys):
    Image.new("L", (8, 8), 1).save(root / "annotations" / "training" / "scene_0001.png")
    Image.new("L", (32, 32), 12).save(root / "annotations" / "training" / "scene_0002.png")
    (root / "annotations" / "validation" / "scene_0000.png").unlink()
    assert verify(["ade20k", *names]) == 1
    printed = capsys.readouterr().out
    assert "scene_0001.png is 8x8" in printed
    assert "scene_0002.png has the value 12" in printed
    assert "1 of 2 images" in printed
    assert "3 problems" in printed
