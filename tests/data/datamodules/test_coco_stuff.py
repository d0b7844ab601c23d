"""The COCO-Stuff data module: published numbering, converted label maps, names."""

import numpy as np
import pytest
from PIL import Image

from src.cli import main
from src.data import ADE20KDataModule, COCOStuffDataModule
from src.data.classes.coco_stuff import COCO_STUFF_CATEGORIES, COCO_STUFF_VALUES
from src.errors import UserError

SMALL = {"image_scale": (128, 32), "crop_size": (32, 32), "num_workers": 0}


def write_pair(root, split, values, suffix=".png"):
    images, labels = root / "images" / split, root / "annotations" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    array = np.array(values, dtype=np.uint8)
    Image.new("RGB", array.shape[::-1]).save(images / "000000000009.jpg")
    Image.fromarray(array).save(labels / f"000000000009{suffix}")


def stored_labels(data):
    data.setup("validate")
    (batch,) = data.val_dataloader()
    return batch["label"][0].tolist()


def test_there_are_171_classes():
    names = list(COCO_STUFF_CATEGORIES.values())
    assert len(set(names)) == len(COCO_STUFF_VALUES) == 171
    assert (names[0], names[79], names[80], names[170]) == (
        "person",
        "toothbrush",
        "banner",
        "wood",
    )
    # Eleven categories of labels.txt, counted from 0, were never annotated.
    gaps = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert sorted({*COCO_STUFF_VALUES, *gaps}) == list(range(182))


def test_published_numbers_become_class_indices(tmp_path):
    write_pair(tmp_path, "val2017", [[0, 10, 12], [89, 91, 181], [255, 255, 13]])
    data = COCOStuffDataModule(root=str(tmp_path), **SMALL)
    assert stored_labels(data) == [[0, 10, 11], [79, 80, 170], [255, 255, 12]]
    assert data.num_classes == 171
    assert data.class_names[80] == "banner"


def test_converted_label_maps(tmp_path):
    write_pair(tmp_path, "val2017", [[0, 170, 255]], "_labelTrainIds.png")
    data = COCOStuffDataModule(root=str(tmp_path), train_ids=True, **SMALL)
    assert stored_labels(data) == [[0, 170, 255]]


def test_converted_label_maps_of_the_10k_set_count_from_one(tmp_path):
    write_pair(tmp_path, "test2014", [[0, 1, 171]], "_labelTrainIds.png")
    data = COCOStuffDataModule(
        root=str(tmp_path),
        val_images="images/test2014",
        val_labels="annotations/test2014",
        train_ids=True,
        reduce_zero_label=True,
        **SMALL,
    )
    assert stored_labels(data) == [[255, 0, 170]]


def test_a_number_of_no_class_is_named(tmp_path):
    write_pair(tmp_path, "val2017", [[0, 11, 11]])
    data = COCOStuffDataModule(root=str(tmp_path), **SMALL)
    with pytest.raises(UserError, match=r"000000000009\.png has the value 11 in 2 pixels"):
        stored_labels(data)


def test_verify(tmp_path, capsys):
    command = ["verify", "coco-stuff", "--root", str(tmp_path), "--splits", "val"]
    write_pair(tmp_path, "val2017", [[0, 10, 181]])
    assert main(command) == 0
    assert "val: 1 pairs, 3 classes occur" in capsys.readouterr().out
    assert main([*command, "--train-ids"]) == 1
    write_pair(tmp_path, "val2017", [[0, 11, 181]])
    assert main(command) == 1
    assert "has the value 11 in 1 pixel" in capsys.readouterr().out


def test_any_numbering_can_be_given(tmp_path):
    write_pair(tmp_path, "val", [[7, 30, 255]])
    folders = {"val_images": "images/val", "val_labels": "annotations/val"}
    data = ADE20KDataModule(
        root=str(tmp_path),
        class_names=["road", "car"],
        class_values=[7, 30],
        reduce_zero_label=False,
        **folders,
        **SMALL,
    )
    assert stored_labels(data) == [[0, 1, 255]]


@pytest.mark.parametrize(
    "changes",
    [
        {"class_values": [1, 1]},
        {"class_values": [0, 255]},
        {"class_values": [0, 1], "reduce_zero_label": True},
        {"class_values": [0]},
    ],
)
def test_bad_numberings(changes):
    given = {"class_names": ["road", "car"], "reduce_zero_label": False} | changes
    with pytest.raises(UserError, match="class_values"):
        assert ADE20KDataModule(**given).class_names
