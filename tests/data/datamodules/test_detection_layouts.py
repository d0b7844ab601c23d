"""LVIS, OpenImages, PASCAL VOC and CrowdHuman: what their data modules read and check."""

import json
from pathlib import Path

import pytest
import torch

from src import data
from src.cli.commands.verify import main as verify
from src.data.classes.lvis import LVIS_NAMES
from src.data.classes.open_images import OPEN_IMAGES_NAMES
from src.data.classes.voc import VOC_NAMES
from src.errors import UserError
from src.metrics.coco import COCOMetric
from src.types import ClassFacts, Detections, ImageLabels
from tests.data.detection_trees import DATA_MODULES, SIZE, WRITERS, voc_xml


def make(name: str, root: Path, **arguments):
    """Data module of a tiny dataset, ready to train."""
    arguments = {**WRITERS[name](root), **arguments}
    module = getattr(data, DATA_MODULES[name])(
        train_scales=[(64, 48)], eval_scale=(64, 48), batch_size=2, num_workers=0, **arguments
    )
    module.setup("fit")
    return module


def test_lvis(tmp_path: Path) -> None:
    module = make("lvis", tmp_path)
    assert module.class_names == ["cat", "dog", "elk"]
    assert module.class_facts == ClassFacts(frequencies=("f", "c", "r"))
    batch = next(iter(module.val_dataloader()))
    assert batch["image_labels"] == [ImageLabels(absent=(2,), not_exhaustive=(1,))]
    assert next(iter(module.train_dataloader()))["target"][0]["masks"].any()
    assert len(LVIS_NAMES) == len(set(LVIS_NAMES)) == 1203


def test_open_images(tmp_path: Path) -> None:
    module = make("openimages", tmp_path)
    assert module.class_names == ["Cat", "Animal", "Dog"]
    assert module.class_facts == ClassFacts(ancestors=((1,), (), (1,)))
    first, second, third, _ = module.val_dataloader()
    assert first["image_id"] == ["validation0"]
    assert first["image_labels"] == [ImageLabels(absent=(2,))]
    assert second["image_labels"] == [ImageLabels(present=(0,))]
    assert third["image_labels"] == [ImageLabels()]
    (box,) = first["annotations"][0]
    assert box["bbox"] == [8, 12, 32, 24]
    assert box["is_group_of"] == 1
    assert "is_group_of" not in second["annotations"][0][0]
    assert len(OPEN_IMAGES_NAMES) == len(set(OPEN_IMAGES_NAMES)) == 601


def test_voc(tmp_path: Path) -> None:
    module = make("voc", tmp_path)
    assert module.class_names == list(VOC_NAMES)
    assert module.annotation_file("train").path == tmp_path / "VOC2007/trainval + VOC2012/trainval"
    assert len(module._datasets["train"]) == 8
    cat, dog, *_ = (batch["annotations"][0][0] for batch in module.val_dataloader())
    assert cat["bbox"] == [4, 4, 24, 24]  # counted from 0
    assert "ignore" not in cat
    assert dog["ignore"] == 1
    targets = [t for batch in module.train_dataloader() for t in batch["target"]]
    assert sorted(len(target["boxes"]) for target in targets) == [0] * 4 + [1] * 4


def test_images_of_voc_without_annotations_can_be_tested(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    for file in (tmp_path / "VOC2007" / "Annotations").glob("test*"):
        file.unlink()
    module = data.VOCDataModule(root=str(tmp_path), num_workers=0)
    module.setup("test")
    batch = next(iter(module.test_dataloader()))
    assert batch["annotations"] == [[]]
    assert batch["original_size"] == [SIZE[::-1]]


@pytest.mark.parametrize(("body", "used"), [("fbox", 1), ("vbox", 1), ("hbox", 0)])
def test_crowd_human(tmp_path: Path, body: str, used: int) -> None:
    module = make("crowdhuman", tmp_path, body=body)
    assert module.class_names == ["person"]
    assert module.annotation_file("train").num_usable == used * 4
    person, crowd = next(iter(module.val_dataloader()))["annotations"][0]
    assert person["bbox"] == {"fbox": [4, -2, 24, 40], "vbox": [4, 0, 24, 30]}.get(
        body, [8, 0, 8, 8]
    )
    assert crowd["ignore"] == crowd["iscrowd"] == 1


def test_crowds_of_crowd_human_need_not_be_found(tmp_path: Path) -> None:
    module = make("crowdhuman", tmp_path)
    metric = COCOMetric(1, kinds=("bbox",))
    for batch in module.val_dataloader():
        box = torch.tensor([[4.0, -2, 28, 38], [40, 20, 60, 40]])  # the person, and somewhere else
        found = Detections(box, torch.tensor([0.9, 0.1]), torch.zeros(2, dtype=torch.int64))
        crowd = batch["annotations"][0][1]
        crowd["bbox"] = [30, 10, 34, 38]
        metric.update([found], batch["image_id"], batch["original_size"], batch["annotations"])
    assert float(metric.compute()["bbox_AP"]) == pytest.approx(1)


def test_labels_of_whole_test_images_belong_to_their_boxes(tmp_path: Path) -> None:
    boxes = "annotations/oidv6-train-annotations-bbox.csv"
    module = make("openimages", tmp_path, test_images="train", test_annotations=boxes)
    module.setup("test")
    assert "image_labels" not in next(iter(module.test_dataloader()))
    with pytest.raises(UserError, match=r"data\.test_image_labels accepts a file together with"):
        make("openimages", tmp_path, test_image_labels="annotations/labels.csv")


def test_images_are_named_where_annotations_have_no_id(tmp_path: Path, caplog) -> None:
    WRITERS["voc"](tmp_path)
    (tmp_path / "VOC2007/Annotations/test0.xml").write_text(voc_xml(False).replace("29<", "5<"))
    data.VOCDataModule(root=str(tmp_path)).annotation_file("val")
    assert "because of no area (of the image 'VOC2007/test0')" in caplog.text


@pytest.mark.parametrize("name", WRITERS)
def test_verify(tmp_path: Path, name: str, capsys) -> None:
    root = WRITERS[name](tmp_path)["root"]
    assert verify([name, "--root", root]) == 0
    assert "4 annotations" in capsys.readouterr().out.replace("8 annotations", "4 annotations")
    image = min(path for path in tmp_path.rglob("*.??g") if "train" in path.name + str(path.parent))
    image.write_bytes(b"no image")
    assert verify([name, "--root", root]) == 1
    assert str(image) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("lvis", "annotations/lvis_v1_val.json", None, "does not exist"),
        ("voc", "VOC2007/ImageSets/Main/test.txt", None, "list of images .* does not exist"),
        ("voc", "VOC2007/Annotations/test0.xml", "<annotation>", "cannot be read: no element"),
        ("voc", "VOC2007/Annotations/test0.xml", "<a></a>", "it has no <height> in <a>"),
        (
            "openimages",
            "annotations/validation-annotations-bbox.csv",
            "ImageID,LabelName\n",
            "has no column XMin",
        ),
        (
            "openimages",
            "annotations/validation-annotations-bbox.csv",
            "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\nvalidation0,/m/x,0,1,0,1,0\n",
            "line 2: the class '/m/x' is not in the list",
        ),
        (
            "openimages",
            "annotations/validation-annotations-bbox.csv",
            "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\nvalidation0,/m/c,0,one,0,1,0\n",
            "line 2: could not convert",
        ),
        ("openimages", "annotations/bbox_labels_600_hierarchy.json", None, "hierarchy to null"),
        ("openimages", "annotations/bbox_labels_600_hierarchy.json", "[]", "is not a hierarchy"),
        ("openimages", "validation/validation0.jpg", "text", "validation0.jpg"),
        ("crowdhuman", "annotation_val.odgt", "{}\n", "line 1 is not an image of CrowdHuman"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, file: str, text: str | None, message: str):
    WRITERS[name](tmp_path)
    path = tmp_path / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        getattr(data, DATA_MODULES[name])(root=str(tmp_path)).setup("validate")


def test_a_broken_image_without_a_size_is_left_out(tmp_path: Path) -> None:
    WRITERS["openimages"](tmp_path)
    (tmp_path / "validation/validation0.jpg").write_text("text")
    module = data.OpenImagesDataModule(root=str(tmp_path), broken_images="skip")
    with pytest.warns(UserWarning, match=r"validation0.jpg .* The image is left out"):
        module.setup("validate")
    assert len(module._datasets["val"]) == 3


def test_unknown_categories_in_the_fields_of_lvis(tmp_path: Path) -> None:
    WRITERS["lvis"](tmp_path)
    path = tmp_path / "annotations/lvis_v1_val.json"
    content = json.loads(path.read_text())
    for value, message in (([7], "has 7 in neg_category_ids"), (7, "expected a list")):
        content["images"][1]["neg_category_ids"] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            data.LVISDataModule(root=str(tmp_path)).setup("validate")


def test_objects_of_other_classes_are_left_out_of_voc(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    (tmp_path / "VOC2007/Annotations/test0.xml").write_text(voc_xml(False).replace("cat", "head"))
    module = data.VOCDataModule(root=str(tmp_path))
    module.setup("validate")
    assert module.annotation_file("val").num_annotations.tolist() == [0, 1, 1, 1]


def test_sampling(tmp_path: Path) -> None:
    plain = make("lvis", tmp_path)
    assert len(plain.train_dataloader()) == 2
    repeated = make("lvis", tmp_path, repeat=3)
    assert len(repeated.train_dataloader()) == 6
    rare = make("lvis", tmp_path, repeat_threshold=1.0)  # each class is in half of the images
    assert len(rare.train_dataloader()) == 4
    aware = make("lvis", tmp_path, class_aware=True).train_dataloader()
    labels = [int(t["labels"]) for batch in aware for t in batch["target"]]
    assert sorted(labels) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="class_aware"):
        make("lvis", tmp_path, class_aware=True, repeat=2)
