"""The toy scenes of ``coco.py`` as LVIS, OpenImages, PASCAL VOC and CrowdHuman.

Each tree has what its metric is about. LVIS: classes that are checked in a part of the images only.
OpenImages: more general classes, boxes of groups, labels of whole images. VOC: difficult objects.
CrowdHuman: visible parts of persons, and boxes to ignore. The shapes of VOC have the names of its
first classes and those of CrowdHuman are persons, so class names do not say what is in the images;
the trees are for trying data modules and recipes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from src import files
from src.data.toy.coco import annotation, draw_scenes
from src.data.toy.layout import ToySettings, number_of_scenes, write_layout
from src.data.toy.scenes import SHAPES, Scene, SceneObject

_LABELS = {shape: label for label, shape in enumerate(SHAPES)}
_FREQUENCIES = "ffffcccrrr"  # of the shapes in LVIS
_CHECKED = {"f": 1, "c": 2, "r": 3}  # one of so many images is checked for a class
_KINDS = {"curved": ("circle", "crescent", "heart", "ring")}  # the other shapes are angular
_OTHER_KIND = "angular"
_MANY = 5  # in one of so many scenes, something is not annotated precisely
_VOC_NAMES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
]
_DIFFICULT_AREA = 0.02  # of the image; smaller objects are difficult in VOC
Box = tuple[int, int, int, int]


def _draw_lvis(folder: Path, settings: ToySettings) -> None:
    categories = [
        {"id": label + 1, "name": shape, "frequency": _FREQUENCIES[label]}
        for shape, label in _LABELS.items()
    ]
    for split in ("train", "val"):
        images, annotations = [], []
        for number, scene in enumerate(draw_scenes(split, settings), 1):
            file = f"{split}2017/{number:012d}.jpg"
            _write_image(folder / file, scene)
            checked = {
                label + 1
                for label, frequency in enumerate(_FREQUENCIES)
                if (number + label) % _CHECKED[frequency] == 0
            }
            found = [annotation(item, number) for item in scene.objects]
            found = [item for item in found if item["category_id"] in checked]
            present = {item["category_id"] for item in found}
            height, width = scene.image.shape[:2]
            images.append(
                {
                    "id": number,
                    "coco_url": f"http://images.cocodataset.org/{file}",
                    "height": height,
                    "width": width,
                    "neg_category_ids": sorted(checked - present),
                    "not_exhaustive_category_ids": sorted(present) if number % _MANY == 0 else [],
                }
            )
            annotations += found
        content = {
            "images": images,
            "annotations": [item | {"id": number} for number, item in enumerate(annotations, 1)],
            "categories": categories,
        }
        files.write_json(folder / "annotations" / f"lvis_v1_{split}.json", content)


def _draw_open_images(folder: Path, settings: ToySettings) -> None:
    kinds = [*_KINDS, _OTHER_KIND]
    below: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds}
    for shape in SHAPES:
        kind = next((kind for kind, shapes in _KINDS.items() if shape in shapes), _OTHER_KIND)
        below[kind].append({"LabelName": _machine_id(shape)})
    tree = [{"LabelName": _machine_id(kind), "Subcategory": below[kind]} for kind in kinds]
    target = folder / "annotations"
    files.write_json(
        target / "bbox_labels_600_hierarchy.json", {"LabelName": "/m/toy", "Subcategory": tree}
    )
    names = [*SHAPES, *kinds]
    files.write_csv(
        target / "class-descriptions-boxable.csv",
        [(_machine_id(name), name.capitalize()) for name in names],
    )
    for split, name, prefix in (
        ("train", "train", "oidv6-train"),
        ("val", "validation", "validation"),
    ):
        boxes, labels = [], []
        for number, scene in enumerate(draw_scenes(split, settings)):
            image = f"{name}{number:06d}"
            _write_image(folder / name / f"{image}.jpg", scene)
            for shape, box, is_group in _groups(scene.objects, number):
                boxes.append((image, _machine_id(shape), *_relative(box, scene), int(is_group)))
            labels += [
                (image, _machine_id(shape), int(any(item.name == shape for item in scene.objects)))
                for shape in SHAPES
            ]
        head = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
        files.write_csv(target / f"{prefix}-annotations-bbox.csv", [head, *boxes])
        if split == "val":
            files.write_csv(
                target / f"{prefix}-annotations-human-imagelabels-boxable.csv",
                [("ImageID", "LabelName", "Confidence"), *labels],
            )


def _groups(objects: Sequence[SceneObject], number: int) -> Iterator[tuple[str, Box, bool]]:
    """Shape, box, and whether it is a group: in some scenes, equal shapes share a box."""
    for shape in SHAPES:
        boxes = [item.box for item in objects if item.name == shape]
        if len(boxes) > 1 and number % _MANY == 0:
            left, top, right, bottom = zip(*boxes, strict=True)
            yield shape, (min(left), min(top), max(right), max(bottom)), True
        else:
            yield from ((shape, box, False) for box in boxes)


def _relative(box: Box, scene: Scene) -> tuple[float, ...]:
    height, width = scene.image.shape[:2]
    return tuple(round(side / size, 6) for side, size in zip(box, (width, height) * 2, strict=True))


def _machine_id(name: str) -> str:
    return f"/m/toy_{name}"


def _draw_voc(folder: Path, settings: ToySettings) -> None:
    for split, parts in (
        ("train", ("VOC2007/trainval", "VOC2012/trainval")),  # half of the scenes each
        ("val", ("VOC2007/test",)),
    ):
        names: dict[str, list[str]] = {part: [] for part in parts}
        for number, scene in enumerate(draw_scenes(split, settings)):
            part, name = parts[number % len(parts)], f"{split}_{number:06d}"
            year = part.partition("/")[0]
            _write_image(folder / year / "JPEGImages" / f"{name}.jpg", scene)
            _write_lines(folder / year / "Annotations" / f"{name}.xml", [_xml(scene)])
            names[part].append(name)
        for part in parts:
            year, _, listed = part.partition("/")
            _write_lines(folder / year / "ImageSets" / "Main" / f"{listed}.txt", names[part])


def _xml(scene: Scene) -> str:
    """Annotation of an image in VOC, whose coordinates count from 1."""
    height, width = scene.image.shape[:2]
    root = ElementTree.Element("annotation")
    _add(root, "size", {"width": width, "height": height, "depth": 3})
    for item in scene.objects:
        is_difficult = int(item.mask.mean() < _DIFFICULT_AREA)
        entry = _add(root, "object", {"name": _VOC_NAMES[_LABELS[item.name]]})
        ElementTree.SubElement(entry, "difficult").text = str(is_difficult)
        corners = zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)
        _add(entry, "bndbox", {name: side + 1 for name, side in corners})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, name: str, values: dict[str, Any]) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name)
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
    return element


def _draw_crowd_human(folder: Path, settings: ToySettings) -> None:
    for split in ("train", "val"):
        lines = []
        for number, scene in enumerate(draw_scenes(split, settings)):
            name = f"{split},{number:06d}"
            _write_image(folder / "Images" / f"{name}.jpg", scene)
            persons = [_person(item, index) for index, item in enumerate(scene.objects)]
            if number % _MANY == 0 and len(persons) > 1:
                persons[0] |= {"tag": "mask", "extra": {"ignore": 1}}
            lines.append(json.dumps({"ID": name, "gtboxes": persons}))
        _write_lines(folder / f"annotation_{split}.odgt", lines)


def _person(item: SceneObject, number: int) -> dict[str, Any]:
    """A shape as a person, whose legs are hidden: the full body is a third longer."""
    x1, y1, x2, y2 = item.box
    width, height = x2 - x1, y2 - y1
    return {
        "tag": "person",
        "fbox": [x1, y1, width, height + height // 3],
        "vbox": [x1, y1, width, height],
        "hbox": [x1 + width // 4, y1, width - width // 2, max(1, height // 3)],
        "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
        "extra": {"box_id": number, "occ": 0},
    }


def _write_image(path: Path, scene: Scene) -> None:
    files.write_image(path, Image.fromarray(scene.image), quality=92)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _writer(draw: Callable[[Path, ToySettings], None]) -> Callable[..., bool]:
    def write(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
        return write_layout(folder, settings, draw, force=force)

    return write


def _describe(settings: ToySettings) -> str:
    train, val = (number_of_scenes(settings, split) for split in ("train", "val"))
    return f"{train} training and {val} validation scenes with boxes"


LAYOUTS: dict[str, tuple[Callable[..., bool], Callable[[ToySettings], str]]] = {
    "lvis": (_writer(_draw_lvis), _describe),
    "openimages": (_writer(_draw_open_images), _describe),
    "voc": (_writer(_draw_voc), _describe),
    "crowdhuman": (_writer(_draw_crowd_human), _describe),
}
"""What writes a layout, and what describes it, by the name of its folder."""
