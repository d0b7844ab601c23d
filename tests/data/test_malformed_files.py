"""Damaged and hostile files of every format are refused with a one-line error that names them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from src.data.classes.imagenet22k import label_set
from src.data.custom.coco_layout import find_images
from src.data.custom.label_values import LabelReader
from src.data.custom.yolo_labels import read_labels
from src.data.custom.yolo_layout import find_dataset
from src.data.formats.crowd_human_odgt import read_odgt
from src.data.formats.open_images_csv import (
    read_ancestors,
    read_boxes,
    read_classes,
    read_image_level_labels,
)
from src.data.formats.voc_xml import read_voc
from src.data.prepare.cityscapes import draw_label_map
from src.data.prepare.imagenet_val import read_val_labels
from src.data.tars.index import read_index
from src.errors import UserError

LATIN = "é".encode("latin-1")
DEEP = "[" * 100_000
HUGE = "1" + "0" * 400  # an integer that does not fit a float
LABELS = {"/m/c": 0}
BOXES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
PERSON = {"tag": "person", "fbox": [1, 2, 3, 4], "extra": {}}
LINE = json.dumps({"ID": "a", "gtboxes": [PERSON]}) + "\n"
POLYGONS = {"imgWidth": 8, "imgHeight": 4, "objects": []}
POLYGON = {"label": "road", "polygon": [[0, 0], [7, 0], [7, 3]]}
INDEX = {"version": 1, "root": ".", "text": "", "left_out": {}, "tars": []}


def voc_list(path: Path) -> Any:
    folder = path.parent / "VOC2007" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    path.rename(folder / "test.txt")
    return read_voc(path.parent, ["VOC2007/test"], {"cat": 1}, 10**8)


def voc_xml(path: Path) -> Any:
    folder = path.parent / "VOC2007"
    for name in ("ImageSets/Main", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("a\n")
    path.rename(folder / "Annotations" / "a.xml")
    return read_voc(path.parent, ["VOC2007/test"], {"cat": 1}, 10**8)


def devkit_labels(path: Path) -> Any:
    path.rename(path.with_name("meta.mat"))
    path.write_text("1\n2\n")
    return read_val_labels(path)


def tar_index(path: Path) -> Any:
    path.rename(path.with_name("index.json"))
    return read_index(path.parent)


def yolo_list(path: Path) -> Any:
    source = path.with_name("data.yaml")
    source.write_text(f"train: {path.name}\nnames: [cat]\n")
    return find_dataset(source, None)


def yolo_yaml(path: Path) -> Any:
    return find_dataset(path, None)


def coco_images(path: Path) -> Any:
    return find_images(path, path.parent)


def changed(content: dict[str, Any], **values: Any) -> str:
    return json.dumps(content | values)


boxes = partial(read_boxes, label_of=LABELS)
image_labels = partial(read_image_level_labels, label_of=LABELS)
persons = partial(read_odgt, body="fbox")


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (boxes, LATIN, "is not a csv file in UTF-8"),
        (boxes, BOXES + "a" * 200_000, "is not a csv file in UTF-8: field larger"),
        (image_labels, "ImageID,LabelName,Confidence\na,/m/c,nan\n", "line 2: the confidence is"),
        (read_classes, LATIN, "is not a csv file in UTF-8"),
        (read_classes, "/m/c,Cat\n/m/c,Dog\n", "lists the class '/m/c' more than once"),
        (partial(read_ancestors, label_of=LABELS), DEEP, "is not a hierarchy"),
        (persons, LATIN, "line 1 is not an image of CrowdHuman"),
        (persons, DEEP, "line 1 is not an image of CrowdHuman"),
        (persons, LINE.replace("4]", HUGE + "]"), "line 1 is not an image of CrowdHuman"),
        (persons, LINE * 2, "line 2 is a second line of the image 'a'"),
        (voc_list, LATIN, "is not UTF-8 text"),
        (voc_xml, '<?xml version="1.0" encoding="x"?><a/>', "cannot be read: unknown encoding"),
        (draw_label_map, DEEP, "is not a file of Cityscapes polygons"),
        (draw_label_map, changed(POLYGONS, imgWidth=float("inf")), "is not a file of Cityscapes"),
        (
            draw_label_map,
            changed(POLYGONS, objects=[POLYGON]).replace("7,", HUGE + ","),
            "is not a file of Cityscapes",
        ),
        (read_val_labels, LATIN, "is not UTF-8 text"),
        (read_val_labels, "\u00b2\n\u00b2\n", "Line 1 .* is not a label"),
        (read_val_labels, "ILSVRC2012_val_00000001.JPEG \u00b2\n", "Line 1 .* is not a label"),
        (devkit_labels, "nonsense", "is not the devkit's meta.mat"),
        (label_set, DEEP, "is not a json file"),
        (coco_images, DEEP, "nested more deeply than any COCO file"),
        (yolo_yaml, "a: " + "[" * 10_000, "is not a yaml file"),
        (yolo_yaml, "a: 2026-13-01\n", "is not a yaml file"),
        (yolo_yaml, "train: .\nnames: {0: a, b: c}\n", "has no list `names`"),
        (yolo_yaml, "train: .\nnames: [[a], [b]]\n", "has no list `names`"),
        (yolo_list, LATIN, "is neither an image nor UTF-8 text"),
        (partial(read_labels, classes=None), "9999999 0.5 0.5 0.1 0.1", "from 0 to 100000"),
        (tar_index, changed(INDEX, left_out=[]), "is damaged"),
        (tar_index, changed(INDEX, tars=[["a", float("inf"), 1]]), "is damaged"),
        (tar_index, changed(INDEX, tars=[["a", 10**20, 1]]), "is damaged"),
    ],
    ids=itertools.count(),
)
def test_it_is_refused_with_a_one_line_error(
    read: Callable[[Path], Any], content: bytes | str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_meta_mat_of_something_else(tmp_path: Path) -> None:
    savemat(tmp_path / "meta.mat", {"x": 1})
    (tmp_path / "truth.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"is not the devkit's meta.mat \(KeyError: 'synsets'\)"):
        read_val_labels(tmp_path / "truth.txt")


def test_numbers_of_label_maps_do_not_fill_the_memory(tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.int32)
    values[4:] = 2_000_000_000
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="hold the number 2000000000; expected class numbers up to"):
        LabelReader([str(tmp_path / "a.tif")], None, None, None, snap=False)


def test_the_class_list_of_open_images_v7_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "oidv7-class-descriptions-boxable.csv"
    path.write_text("LabelName,DisplayName\n/m/c,Cat\n/m/d,Dog\n")
    assert read_classes(path) == {"/m/c": "Cat", "/m/d": "Dog"}
