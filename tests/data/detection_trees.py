"""Tiny datasets of boxes in the layouts of LVIS, OpenImages, PASCAL VOC and CrowdHuman."""

import json
from pathlib import Path
from typing import Any

from tests.cli.tiny import save_image

COUNT = 4  # images of a split
SIZE = (64, 48)


def write_lvis(root: Path) -> dict[str, Any]:
    """Every image has a box of one of two classes; a third one never occurs."""
    categories = [
        {"id": 1, "name": "cat", "frequency": "f"},
        {"id": 2, "name": "dog", "frequency": "c"},
        {"id": 3, "name": "elk", "frequency": "r"},
    ]
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, COUNT + 1):
            name = f"{split}2017/{number:012d}.png"
            save_image(root / name, number, SIZE)
            images.append(
                {
                    "id": number,
                    "coco_url": f"http://images.cocodataset.org/{name}",
                    "width": SIZE[0],
                    "height": SIZE[1],
                    "neg_category_ids": [3],
                    "not_exhaustive_category_ids": [2] if number == 1 else [],
                }
            )
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1 + number % 2,
                    "bbox": [4, 4, 24, 24],
                    "area": 576,
                    "segmentation": [[4, 4, 28, 4, 28, 28, 4, 28]],
                }
            )
        content = {"images": images, "annotations": annotations, "categories": categories}
        write(root / f"annotations/lvis_v1_{split}.json", json.dumps(content))
    return {"root": str(root)}


def write_open_images(root: Path) -> dict[str, Any]:
    """Cats and dogs, which are animals; the first box of each split is a group."""
    write(root / "annotations/class-descriptions-boxable.csv", "/m/c,Cat\n/m/a,Animal\n/m/d,Dog\n")
    tree = {"LabelName": "/m/0", "Subcategory": [{"LabelName": "/m/a"}]}
    tree["Subcategory"][0]["Subcategory"] = [{"LabelName": "/m/c"}, {"LabelName": "/m/d"}]
    write(root / "annotations/bbox_labels_600_hierarchy.json", json.dumps(tree))
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
        "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    )
    for folder, file in (
        ("train", "oidv6-train-annotations-bbox.csv"),
        ("validation", "validation-annotations-bbox.csv"),
    ):
        lines = []
        for number in range(COUNT):
            save_image(root / folder / f"{folder}{number}.jpg", number, SIZE)
            label, group = ("/m/c", "/m/d")[number % 2], int(number == 0)
            lines.append(f"{folder}{number},x,{label},1,0.125,0.625,0.25,0.75,0,0,{group},0,0\n")
        write(root / "annotations" / file, head + "".join(lines))
    labels = "ImageID,Source,LabelName,Confidence\nvalidation0,v,/m/d,0\nvalidation1,v,/m/c,1\n"
    write(root / "annotations/validation-annotations-human-imagelabels-boxable.csv", labels)
    return {"root": str(root)}


def write_voc(root: Path) -> dict[str, Any]:
    """A cat or a difficult dog on each image."""
    for year, parts in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for part in parts:
            names = [f"{part}{number}" for number in range(COUNT)]
            write(root / year / "ImageSets/Main" / f"{part}.txt", "\n".join(names) + "\n")
            for number, name in enumerate(names):
                save_image(root / year / "JPEGImages" / f"{name}.jpg", number, SIZE)
                write(root / year / "Annotations" / f"{name}.xml", voc_xml(number % 2 == 1))
    return {"root": str(root)}


def voc_xml(is_difficult: bool) -> str:
    """Annotation of an image with one object."""
    name = "dog" if is_difficult else "cat"
    box = "<xmin>5</xmin><ymin>5</ymin><xmax>29</xmax><ymax>29</ymax>"
    return (
        f"<annotation><size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        f"<object><name>{name}</name><difficult>{int(is_difficult)}</difficult>"
        f"<bndbox>{box}</bndbox></object></annotation>"
    )


def write_crowd_human(root: Path) -> dict[str, Any]:
    """A person and a crowd on each image."""
    for split in ("train", "val"):
        lines = []
        for number in range(COUNT):
            name = f"{split},{number}"
            save_image(root / "Images" / f"{name}.jpg", number, SIZE)
            person = {"tag": "person", "fbox": [4, -2, 24, 40], "vbox": [4, 0, 24, 30]}
            person |= {"hbox": [8, 0, 8, 8], "head_attr": {"ignore": 1}, "extra": {"box_id": 0}}
            crowd = {**person, "tag": "mask", "extra": {"ignore": 1}}
            lines.append(json.dumps({"ID": name, "gtboxes": [person, crowd]}) + "\n")
        write(root / f"annotation_{split}.odgt", "".join(lines))
    return {"root": str(root)}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


WRITERS = {
    "lvis": write_lvis,
    "openimages": write_open_images,
    "voc": write_voc,
    "crowdhuman": write_crowd_human,
}
DATA_MODULES = {
    "lvis": "LVISDataModule",
    "openimages": "OpenImagesDataModule",
    "voc": "VOCDataModule",
    "crowdhuman": "CrowdHumanDataModule",
}
