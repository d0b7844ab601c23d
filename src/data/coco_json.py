"""Reading COCO annotation files: checks, classes, and what is usable of every object.

The rules of what is learned from are those of the official code (mmdetection 2.28): crowds are
left out of training, as are objects outside their picture, without area or with a side below one
pixel. pycocotools only decodes masks here; it accepts broken files silently, this does not.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from src.errors import UserError

_log = logging.getLogger(__name__)

Annotation = dict[str, Any]
_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Picture:
    """An entry of ``images``: its number, its file, its height and width in pixels."""

    id: int
    file_name: str
    size: tuple[int, int]


class CocoFile:
    """One annotation file, checked.

    Annotations are kept as one block of bytes instead of millions of objects, because loader
    processes made by fork would copy objects bit by bit.

    Args:
        path: The json file.
        masks: Whether objects without a usable mask are lost for training; it only decides what is
            reported.
        classes: Names in label order, each with the number it gets if the file does not list it;
            the file's categories find their label by name. Default: the file's own categories in
            the order of their numbers.

    Raises:
        UserError: If the file is missing, no COCO json, or contradicts itself; names file and id.
    """

    def __init__(
        self, path: str | Path, masks: bool = True, classes: Mapping[str, int] | None = None
    ) -> None:
        self.path = Path(path)
        content = _read(self.path)
        self.listed = _categories(content["categories"], self.path)
        self.categories = self.listed
        if classes is not None:
            self.categories = _all_classes(self.listed, classes, self.path)
        self.pictures = [_picture(entry, self.path) for entry in content["images"]]
        labels = {name: label for label, name in enumerate(self.categories.values())}
        label_of = {number: labels[name] for number, name in self.listed.items()}
        by_picture = self._sorted(content["annotations"], label_of)
        blocks = [json.dumps(by_picture.get(p.id, [])).encode() for p in self.pictures]
        self._ends = np.cumsum([len(block) for block in blocks])
        self._block = np.frombuffer(b"".join(blocks), dtype=np.uint8)
        self.num_annotations = np.array([len(by_picture.get(p.id, [])) for p in self.pictures])
        self._report(by_picture, masks)

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in label order."""
        return list(self.categories.values())

    @property
    def category_ids(self) -> list[int]:
        """Numbers of the categories in label order."""
        return list(self.categories)

    def annotations(self, index: int) -> list[Annotation]:
        """Annotations of a picture as in the file, with the class index as ``category_id``."""
        start = self._ends[index - 1] if index else 0
        found: list[Annotation] = json.loads(self._block[start : self._ends[index]].tobytes())
        return found

    def _sorted(
        self, annotations: Sequence[Any], label_of: dict[int, int]
    ) -> dict[int, list[Annotation]]:
        sizes = {picture.id: picture.size for picture in self.pictures}
        if len(sizes) < len(self.pictures):
            raise UserError(f"{self.path} lists several pictures with the same id.")
        by_picture: dict[int, list[Annotation]] = defaultdict(list)
        for annotation in annotations:
            checked = _annotation(annotation, label_of, sizes, self.path)
            by_picture[annotation["image_id"]].append(checked)
        return by_picture

    def _report(self, by_picture: dict[int, list[Annotation]], masks: bool) -> None:
        """Tell once which objects cannot be learned from although they are no crowds."""
        reasons: dict[str, list[Any]] = defaultdict(list)
        for picture in self.pictures:
            for annotation in by_picture.get(picture.id, []):
                reason = why_unusable(annotation, picture.size, masks)
                if reason not in (None, "crowd"):
                    reasons[str(reason)].append(annotation.get("id"))
        for reason, ids in reasons.items():
            shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
            _log.warning(
                "%s: %d objects are left out of training because of %s (annotation ids %s)",
                self.path,
                len(ids),
                reason,
                shown,
            )


def why_unusable(
    annotation: Annotation, size: tuple[int, int], needs_mask: bool = True
) -> str | None:
    """Why an object is left out of training, or None if it is not."""
    if annotation["iscrowd"]:
        return "crowd"
    _, _, width, height = annotation["bbox"]
    if annotation["area"] <= 0 or width < 1 or height < 1:
        return "no area"
    x1, y1, x2, y2 = clipped_box(annotation, size)
    if x2 <= x1 or y2 <= y1:
        return "a box outside the picture"
    segmentation = annotation["segmentation"]
    if needs_mask and isinstance(segmentation, list) and not usable_polygons(segmentation):
        return "no usable mask"
    return None


def clipped_box(annotation: Annotation, size: tuple[int, int]) -> tuple[float, ...]:
    """Box of an object as ``x1, y1, x2, y2``, clipped to the picture of height and width."""
    x, y, width, height = annotation["bbox"]
    picture_height, picture_width = size
    return (
        min(max(x, 0), picture_width),
        min(max(y, 0), picture_height),
        min(max(x + width, 0), picture_width),
        min(max(y + height, 0), picture_height),
    )


def usable_polygons(segmentation: list[Any]) -> list[list[float]]:
    """Polygons of at least three corners; pycocotools would take two corners for a box."""
    return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]


def decode_mask(annotation: Annotation, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Mask of an object, 0 and 1, shape ``(H, W)``; empty if it has no usable polygon."""
    segmentation, (height, width) = annotation["segmentation"], size
    if isinstance(segmentation, list):
        polygons = usable_polygons(segmentation)
        if not polygons:
            return np.zeros(size, np.uint8)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return np.asarray(coco_mask.decode(code), dtype=np.uint8)


def for_scoring(annotation: Annotation, size: tuple[int, int]) -> Annotation:
    """The annotation as the COCO tools score it, with polygons they would misread replaced."""
    segmentation = annotation["segmentation"]
    if not isinstance(segmentation, list):
        return annotation
    polygons = usable_polygons(segmentation)
    if not polygons or len(polygons) < len(segmentation):
        empty = {"size": list(size), "counts": [size[0] * size[1]]}
        return annotation | {"segmentation": polygons or empty}
    return annotation


def _read(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise UserError(
            f"The annotation file {path} does not exist; check data.root and the names of the "
            "annotation files (data.train_annotations, data.val_annotations)."
        )
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The annotation file {path} is not json: {error}.") from error
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        content.setdefault("annotations", [])  # lists of test pictures have none
    lacking = [
        part
        for part in _PARTS
        if not isinstance(content, dict) or not isinstance(content.get(part), list)
    ]
    if lacking:
        raise UserError(
            f"{path} is not a COCO annotation file: it has no list {', '.join(map(repr, lacking))}."
            " Expected is an object with the lists 'images', 'annotations' and 'categories'."
        )
    return content


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys():
            raise UserError(f"{path}: a category must have 'id' and 'name', got {entry!r}.")
        if entry["id"] in found:
            raise UserError(f"{path} lists the category id {entry['id']} twice.")
        found[entry["id"]] = str(entry["name"])
    if not found:
        raise UserError(f"{path} lists no categories, so there is nothing to detect.")
    return dict(sorted(found.items()))


def _picture(entry: Any, path: Path) -> Picture:
    needed = ("id", "file_name", "height", "width")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        name = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise UserError(
            f"{path}: the picture {name!r} must have 'id', 'file_name', 'height' and 'width'."
        )
    height, width = entry["height"], entry["width"]
    if not (_is_number(height) and _is_number(width)):
        raise UserError(
            f"{path}: the picture {entry['id']!r} has height {height!r} and width {width!r}; "
            "expected are two numbers."
        )
    return Picture(entry["id"], str(entry["file_name"]), (int(height), int(width)))


def _all_classes(
    listed: Mapping[int, str], classes: Mapping[str, int], path: Path
) -> dict[int, str]:
    """Number and name of every class in label order, with the file's numbers where it has any."""
    unknown = [name for name in listed.values() if name not in classes]
    if unknown:
        raise UserError(
            f"{path} lists the category {unknown[0]!r}, which is not among the "
            f"{len(classes)} names of data.class_names; leave class_names out to take the names of "
            "the file."
        )
    number_of = {name: number for number, name in listed.items()}
    spare = itertools.count(max([*listed, *classes.values()]) + 1)
    return {
        number_of.get(name, next(spare) if wish in listed else wish): name
        for name, wish in classes.items()
    }


def _annotation(
    entry: Any, label_of: dict[int, int], sizes: dict[int, tuple[int, int]], path: Path
) -> Annotation:
    needed = ("image_id", "category_id", "bbox")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        name = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise UserError(
            f"{path}: the annotation {name!r} must have 'image_id', 'category_id' and 'bbox'."
        )
    name = f"{path}: the annotation {entry.get('id', '(without id)')}"
    if entry["category_id"] not in label_of:
        raise UserError(
            f"{name} has category_id {entry['category_id']}, which is not one of the file's "
            f"categories {_shorten(list(label_of))}."
        )
    if entry["image_id"] not in sizes:
        raise UserError(
            f"{name} belongs to image_id {entry['image_id']}, which is not one of the file's "
            "images."
        )
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise UserError(f"{name} has the bbox {box!r}; expected are four numbers x, y, w, h.")
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, dict):
        _check_code(segmentation, sizes[entry["image_id"]], name)
    elif not all(isinstance(polygon, list) for polygon in segmentation):
        raise UserError(
            f"{name} has a segmentation that is neither a list of polygons nor a run-length code."
        )
    return entry | {
        "category_id": label_of[entry["category_id"]],
        "iscrowd": int(entry.get("iscrowd") or 0),
        "area": entry["area"] if _is_number(entry.get("area")) else box[2] * box[3],
        "segmentation": segmentation,
    }


def _check_code(code: dict[str, Any], size: tuple[int, int], name: str) -> None:
    if not {"size", "counts"} <= code.keys():
        raise UserError(f"{name} has a run-length code without 'size' or 'counts'.")
    if tuple(code["size"]) != size:
        raise UserError(
            f"{name} has a run-length code of height and width {tuple(code['size'])}, but its "
            f"picture is {size}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shorten(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
