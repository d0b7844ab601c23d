"""Malformed COCO files: rejected before native code, with a message that names file and entry."""

import gzip
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli import main
from src.data.custom.coco_layout import find_images
from src.data.datamodules.coco import COCODataModule
from src.data.formats.coco_json import CocoFile, decode_mask
from src.errors import UserError

SQUARE = [[10, 10, 50, 10, 50, 40, 10, 40]]
WRAPS = [2**63 - 1, 2**63 - 1, 2 + 60 * 80]


def annotation(number=4, **changes):
    box = {"bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0, "segmentation": SQUARE}
    return {"id": number, "image_id": 1, "category_id": 7} | box | changes


def image(number=1, **changes):
    return {"id": number, "file_name": f"{number}.jpg", "width": 80, "height": 60} | changes


def content(*annotations, images=None, categories=({"id": 7, "name": "dog"},)):
    return {
        "images": [image()] if images is None else images,
        "annotations": list(annotations),
        "categories": list(categories),
    }


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (80, 60), (9, number, 9)).save(tmp_path / "images" / f"{number}.jpg")

    def write(data, name="a.json"):
        text = data if isinstance(data, (str, bytes)) else json.dumps(data)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


def code(counts):
    return {"size": [60, 80], "counts": counts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [[10, 10, 1e8, 10, 50, 40]]}, "polygon with the coordinate 100000000.0"),
        ({"segmentation": [[10, 10, -1e10, 10, 50, 40]]}, "polygon with the coordinate -1"),
        ({"segmentation": [[10, 10, 50, 10**400, 50, 40]]}, "coordinates that are not numbers: 1"),
        ({"segmentation": [[10, 10, 50, True, 50, 40]]}, "coordinates that are not numbers: True"),
        ({"segmentation": [[10, 10, 50, "1", 50, 40]]}, "coordinates that are not numbers: '1'"),
        ({"segmentation": [[0, 0, 9e5, 9e5] * 50]}, "has 1 polygons with an outline of 180,"),
        ({"segmentation": [[5, 5, 11, 5, 11, 11]] * 20_000}, "20000 polygons with an outline"),
        ({"segmentation": code(WRAPS)}, "a run of 9223372036854775807 pixels"),
        ({"segmentation": code([2**63, 1])}, "run-length code"),
        ({"segmentation": code([10**400])}, "run-length code that cannot be read"),
        ({"segmentation": code([[[4800]]])}, "run-length code that cannot be read"),
        ({"segmentation": code("")}, "run-length code that cannot be read"),
        ({"segmentation": code("\ud800")}, "run-length code that cannot be read"),
        ({"segmentation": {"size": [2**31, 2**31], "counts": [4]}}, "height and width"),
        ({"bbox": [10, 10, 40, 10**400]}, r"the bbox \[10, 10, 40, 1"),
        ({"bbox": [10, 10, 40, 1e9]}, "expected numbers up to 1,000,000"),
        ({"bbox": [10, 10, 40, True]}, "the bbox"),
        ({"bbox": [10, 10, 40, "9"]}, "the bbox"),
        ({"bbox": [10, 10, 40, float("-inf")]}, "the bbox"),
        ({"bbox": {"x": 1}}, "the bbox"),
        ({"category_id": True}, "category_id True"),
        ({"category_id": 7.0}, r"category_id 7\.0"),
        ({"image_id": True}, "image_id True"),
        ({"image_id": 1.0}, r"image_id 1\.0"),
        ({"image_id": "1"}, "image_id '1'"),
        ({"area": 10**400}, "the area 1000"),
        ({"area": float("inf")}, "the area inf"),
        ({"iscrowd": [1]}, r"iscrowd \[1\]"),
        ({"iscrowd": 2}, "iscrowd 2"),
    ],
)
def test_a_wrong_number_is_refused_with_its_annotation(write, changes, message):
    path = write(content(annotation(1), annotation(4, **changes)))
    with pytest.raises(UserError, match=rf"a\.json: the annotation 4 .*{message}") as caught:
        CocoFile(path)
    assert len(str(caught.value)) < 500


def test_a_wrong_number_late_in_a_long_file_is_found(write):
    images = [image(n) for n in range(1, 11)]
    before = [annotation(n, image_id=n % 10 + 1) for n in range(100, 70_100)]
    wrong = annotation(4, segmentation=[[10, 10, 1e8, 10, 50, 40]])
    with pytest.raises(UserError, match="annotation 4 has a polygon with the coordinate"):
        CocoFile(write(content(*before, wrong, images=images)))


def test_an_annotation_without_an_id_is_named_by_its_place(write):
    wrong = annotation(bbox=[])
    del wrong["id"]
    with pytest.raises(
        UserError, match=r"the annotation at position 1 \(without id\) has the bbox"
    ):
        CocoFile(write(content(annotation(), wrong)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 10**400}, "has height 60 and width 1"),
        ({"width": "80"}, "has height 60 and width '80'"),
        ({"width": True}, "has height 60 and width True"),
        ({"width": float("nan")}, "has height 60 and width nan"),
        ({"width": 2**30}, "has height 60 and width 1073741824"),
        ({"file_name": "a" * 5000}, "has the file name 'a.*more than 255 bytes"),
        ({"file_name": "ä" * 200 + ".png"}, "more than 255 bytes"),
        ({"file_name": "d/" * 3000 + "a.png"}, "more than 255 bytes"),
        ({"file_name": "a\0.png"}, "a zero byte"),
        ({"file_name": "../a.png"}, "outside the folder"),
        ({"file_name": "b/../../a.png"}, "outside the folder"),
        ({"file_name": "\ud800.png"}, "not valid text"),
        ({"file_name": 5}, "not text"),
        ({"file_name": ""}, "not text"),
        ({"id": 1.0}, r"has the id 1\.0"),
        ({"id": True}, "has the id True"),
        ({"id": 10**30}, "has the id 1000"),
        ({"id": None}, "has the id None"),
    ],
)
def test_a_wrong_image_is_refused_with_its_id(write, changes, message):
    with pytest.raises(UserError, match=rf"a\.json: (the|an) image .*{message}") as caught:
        CocoFile(write(content(images=[image(2), image(1, **changes)])))
    assert len(str(caught.value)) < 500


def test_ids_of_two_kinds_and_repeated_ids_are_refused(write):
    with pytest.raises(UserError, match=r"integers and with text as id \('x' and 1\)"):
        CocoFile(write(content(images=[image(1), image("x")])))
    with pytest.raises(UserError, match="several images with the same id 1"):
        CocoFile(write(content(images=[image(1), image(1)])))
    twice = CocoFile(write(content(annotation(5), annotation(5))))
    assert len(twice.annotations(0)) == 2  # nothing is found by these ids


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"id": True, "name": "x"}, "id True"),
        ({"id": 2**70, "name": "x"}, "has the id 1180591620717411303424"),
        ({"id": 1, "name": ["x"]}, r"name \['x'\]"),
        ({"id": 1, "name": "x" * 2000}, "up to 1000 characters"),
        ({"id": 1, "name": "\ud800"}, "not valid text"),
    ],
)
def test_a_wrong_category_is_refused(write, category, message):
    with pytest.raises(UserError, match=message):
        CocoFile(write(content(categories=[category])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images":' + "[" * 200_000, "nested more deeply than any COCO file"),
        (json.dumps(content(annotation())).replace("1200", "[" * 90_000), "more deeply|not json"),
        (json.dumps(content(annotation()))[:-40], "seems to be cut off"),
        (json.dumps(content(annotation()))[:25], "after 25 bytes: it seems to be cut off"),
        ('{"images": [{"file_name": "1.jp', "seems to be cut off"),
        ('{"images": [],', "seems to be cut off"),
        ('{"images": [}', r"is not json: Expecting value: line 1 column 13"),
        ('{"images": "ü'.encode()[:-1], "seems to be cut off"),
        (b"\xff\xfe\x00", "is not json"),
        (b"", "is empty"),
        (gzip.compress(b"{}", mtime=0), "is compressed; unpack it"),
        ("[]", "is not a COCO annotation file"),
        ("5", "is not a COCO annotation file"),
        (json.dumps(content() | {"annotations": {}}), "no list 'annotations'"),
    ],
)
def test_what_is_no_coco_json_is_one_sentence(write, text, message):
    with pytest.raises(UserError, match=rf"a\.json .*({message})"):
        CocoFile(write(text))


def test_a_file_larger_than_memory_is_named(write, monkeypatch):
    def fail(_):
        raise MemoryError

    path = write("{}")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UserError, match=r"not enough memory to read the annotation file .*a\.json"):
        CocoFile(path)


def test_thousands_of_digits_name_their_entry(write):
    text = json.dumps(content(annotation()))
    with pytest.raises(UserError, match=r"the annotation 4 has the bbox \[10, 10, 40, inf\]"):
        CocoFile(write(text.replace("40, 30]", "40, " + "1" * 5000 + "]")))
    with pytest.raises(UserError, match="the annotation 4 has the area inf"):
        CocoFile(write(text.replace("1200", "1" * 5000)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_read(write, encoding):
    text = json.dumps(content(annotation()))
    assert len(CocoFile(write(text.encode(encoding))).annotations(0)) == 1


def test_slivers_outside_the_image_change_nothing(write):
    inside, across = [[10, 10, 50, 10, 50, 40, 10, 40]], [[-30, 10, 50, 10, 50, 500, -30, 500]]
    file = CocoFile(write(content(annotation(1, segmentation=across), annotation(2))))
    cut, whole = (decode_mask(a, (60, 80)) for a in file.annotations(0))
    assert cut[10:60, :50].all()
    assert not cut[:, 51:].any()
    assert file.annotations(0)[1]["segmentation"] == inside
    assert whole.sum() == pytest.approx(1200, rel=0.1)


def test_annotations_of_one_image_are_limited(write):
    path = write(content(*(annotation(n) for n in range(12))))
    assert len(CocoFile(path, max_annotations=12).annotations(0)) == 12
    with pytest.raises(UserError, match=r"image 1 has 12 annotations.*data\.max_annotations"):
        CocoFile(path, max_annotations=11)
    zigzag = [[0, 0, 79, 59] * 7000]
    path = write(content(*(annotation(n, segmentation=zigzag) for n in range(20))))
    with pytest.raises(UserError, match="the polygons of the image 1 have outlines of"):
        CocoFile(path)


def test_masks_that_would_take_all_memory_are_refused(write, tmp_path):
    write(content(*(annotation(n) for n in range(70)), images=[image(1)]))
    settings = {"train_images": "images", "train_annotations": "a.json", "num_workers": 0}
    settings |= {"root": str(tmp_path), "train_scales": [(80, 60)], "batch_size": 1}
    settings |= {"val_images": "images", "val_annotations": "a.json", "max_pixels": 4800}
    data = COCODataModule(**settings)
    data.setup("fit")
    with pytest.raises(UserError, match=r"image 1 of 80x60 pixels has 70 annotations, whose masks"):
        next(iter(data.train_dataloader()))


def test_files_outside_the_folder_are_not_read(write, tmp_path):
    inside = str(tmp_path / "images" / "1.jpg")
    settings = {"val_images": "images", "val_annotations": "a.json", "num_workers": 0}
    write(content(annotation(), images=[image(file_name=inside)]))
    data = COCODataModule(root=str(tmp_path), eval_scale=(80, 60), **settings)
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["path"] == [inside]
    Image.new("RGB", (80, 60)).save(tmp_path / "secret.jpg")
    write(content(annotation(), images=[image(file_name=str(tmp_path / "secret.jpg"))]))
    data = COCODataModule(root=str(tmp_path), eval_scale=(80, 60), **settings)
    with pytest.raises(UserError, match=r"image 1 .*secret\.jpg', which is outside the folder"):
        data.setup("validate")


def test_images_of_lvis_are_named_by_their_address(write, tmp_path):
    (tmp_path / "images").rename(tmp_path / "train2017")
    url = "http://images.cocodataset.org/train2017/{}.jpg"
    images = [image(number, coco_url=url.format(number)) for number in (1, 2)]
    for entry in images:
        del entry["file_name"]
    annotations = write(content(annotation(), images=images), "lvis_v1_train.json")
    data = COCODataModule(
        str(tmp_path), val_images=".", val_annotations=annotations.name, num_workers=0
    )
    data.setup("validate")
    paths = [path for batch in data.val_dataloader() for path in batch["path"]]
    assert paths == [str(tmp_path / f"train2017/{number}.jpg") for number in (1, 2)]
    assert find_images(annotations, tmp_path) == tmp_path


@pytest.mark.parametrize("url", ["http://host/../../a.jpg", "http://host/..", "", 5])
def test_an_address_without_a_file_inside_the_folder_is_refused(write, url):
    entry = image(coco_url=url)
    del entry["file_name"]
    with pytest.raises(UserError, match="the image 1 "):
        CocoFile(write(content(annotation(), images=[entry])))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_line_says_it_in_one_sentence(write, tmp_path, capfd, workers):
    write(content(annotation(), images=[image(file_name="/etc/passwd")]))
    settings = {"root": tmp_path, "val_images": "images", "val_annotations": "a.json"}
    settings |= {"num_workers": workers, "eval_scale": "[80,60]"}
    options = [f"--data.{name}={value}" for name, value in settings.items()]
    recipe = Path(__file__).parents[3] / "configs/toy/detection.yaml"
    folder = ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.accelerator", "cpu"]
    assert main(["validate", "--config", str(recipe), *folder, *options]) == 2
    error = capfd.readouterr().err
    assert "outside the folder" in error
    assert "Traceback" not in error


def test_from_coco_refuses_in_one_sentence(write, tmp_path, capsys):
    wrong = annotation(segmentation=[[10, 10, 1e10, 10, 50, 40]])
    path = write(content(wrong, images=[image(1), image(2)]))
    command = ["prepare", "from-coco", str(path), "--images", str(tmp_path / "images")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "the annotation 4 has a polygon with the coordinate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_coco_keeps_all_values_and_counts_what_is_learned(write, tmp_path, capsys):
    entries = [annotation(n, image_id=n, more={"a": [1, "\ud800"]}) for n in (1, 2, 3)]
    crowd = annotation(9, image_id=2, iscrowd=1, segmentation=code([100, 50, 4650]))
    path = write(content(*entries, crowd, images=[image(n, note="ä") for n in (1, 2, 3)]))
    command = ["prepare", "from-coco", str(path), "--images", str(tmp_path / "images")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "  dog: 2 + 1\n" in capsys.readouterr().out
    parts = [
        json.loads((tmp_path / f"out/annotations/{p}.json").read_text()) for p in ("train", "val")
    ]
    kept = sorted((a for part in parts for a in part["annotations"]), key=lambda a: a["id"])
    assert kept == [*entries, crowd]
    assert {i["note"] for part in parts for i in part["images"]} == {"ä"}


def test_entries_with_and_without_optional_values_are_the_same(write):
    plain = annotation(1)
    spare = {key: plain[key] for key in ("id", "image_id", "category_id", "bbox", "segmentation")}
    nulls = annotation(2, area=None, iscrowd=None)
    others = annotation(3, area="x", iscrowd=True, ignore=0)
    lost = annotation(5, area=float("nan"), segmentation=code([100, 50, 4650]))
    entries = [plain, spare, nulls, others]
    found = CocoFile(write(content(*entries))).annotations(0)
    assert found[0] == found[1] == found[2]
    assert found[3] == found[0] | {"iscrowd": 1}
    each = CocoFile(write(content(*entries, lost))).annotations(0)  # now one by one
    assert each[:4] == found
    assert each[4]["area"] == 1200


def test_many_annotations_take_little_time_and_memory(write, caplog):
    """A part that is unusual somewhere, and others that are not."""
    rng = np.random.default_rng(0)
    boxes = rng.integers(1, 30, (120_000, 4)).tolist()
    entries = [
        annotation(n, image_id=n % 20 + 1, bbox=box, area=box[2] * box[3])
        for n, box in enumerate(boxes)
    ]
    entries[70_000]["iscrowd"] = None
    entries[70_001]["segmentation"] = []
    path = write(content(*entries, images=[image(n) for n in range(1, 21)]))
    start = time.process_time()
    with caplog.at_level(logging.WARNING):
        file = CocoFile(path)
    assert time.process_time() - start < 20
    assert file.num_annotations.tolist() == [6000] * 20
    assert "1 annotation is left out of training because of no usable mask (id 70001)" in (
        caplog.text
    )
    assert file.annotations(3)[7]["bbox"] == boxes[3 + 7 * 20]
    assert os.path.getsize(path) > 10_000_000  # noqa: PTH202


def test_columns_agree_with_the_rules_of_the_official_code(write):
    cases = {
        "usable": {},
        "crowd": {"iscrowd": 1},
        "ignored": {"ignore": 1},
        "thin": {"bbox": [10, 10, 0.5, 30]},
        "no area": {"area": 0},
        "outside": {"bbox": [100, 10, 40, 30]},
        "sliver": {"bbox": [79.9999, 10, 5, 30]},
        "two corners": {"segmentation": [[1, 1, 5, 5]]},
        "odd": {"segmentation": [[1, 1, 5, 5, 9, 9, 7]]},
        "one good": {"segmentation": [[1, 1], SQUARE[0]]},
    }
    entries = [annotation(n, **changes) for n, changes in enumerate(cases.values())]
    path = write(content(*entries))
    learned, boxes = CocoFile(path).training_annotations(0)
    assert len(learned) == 2
    assert boxes.tolist() == [[10, 10, 50, 40]] * 2
    assert len(CocoFile(path, masks=False).training_annotations(0)[0]) == 4
