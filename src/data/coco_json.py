"""Reading COCO annotation files: checks, classes, and what is usable of every object.

The rules of what is learned from are those of the official code (mmdetection 2.28): crowds are
left out of training, as are objects marked ``ignore``, outside their picture, without area or with
a side below one pixel. pycocotools only decodes masks here; it accepts broken files silently, this
does not.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from src.data.coco_entries import (
    Annotation,
    check_annotation,
    check_categories,
    check_picture,
    find_categories,
)
from src.errors import UserError
from src.types import PictureId

_log = logging.getLogger(__name__)

_PARTS = ("images", "annotations", "categories")
_MIN_SIDE = 1e-3  # pixels; float32 cannot tell the sides of a narrower box apart


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
        self.listed = check_categories(content["categories"], self.path)
        self.categories = self.listed
        if classes is not None:
            self.categories = find_categories(self.listed, classes, self.path)
        self.pictures = [check_picture(entry, self.path) for entry in content["images"]]
        label_of = {number: label for label, number in enumerate(self.categories)}
        by_picture = self._sorted(content["annotations"], label_of)
        blocks = [json.dumps(by_picture.get(p.id, [])).encode() for p in self.pictures]
        self._ends = np.cumsum([len(block) for block in blocks])
        self._block = np.frombuffer(b"".join(blocks), dtype=np.uint8)
        self.num_annotations = np.array([len(by_picture.get(p.id, [])) for p in self.pictures])
        self.objects_of_class: Counter[int] = Counter()
        self.num_usable, self.left_out = self._report(by_picture, masks)

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
    ) -> dict[PictureId, list[Annotation]]:
        sizes = {picture.id: picture.size for picture in self.pictures}
        if len(sizes) < len(self.pictures):
            raise UserError(f"{self.path} lists several pictures with the same id.")
        by_picture: dict[PictureId, list[Annotation]] = defaultdict(list)
        for annotation in annotations:
            checked = check_annotation(annotation, label_of, sizes, self.path)
            by_picture[annotation["image_id"]].append(checked)
        return by_picture

    def _report(
        self, by_picture: dict[PictureId, list[Annotation]], masks: bool
    ) -> tuple[int, dict[str, int]]:
        """Tell once which objects cannot be learned from although they should be.

        Returns:
            How many objects can be learned from, and how many cannot for each reason.
        """
        reasons: dict[str, list[Any]] = defaultdict(list)
        usable = 0
        for picture in self.pictures:
            for annotation in by_picture.get(picture.id, []):
                reason = why_unusable(annotation, picture.size, masks)
                usable += reason is None
                self.objects_of_class[annotation["category_id"]] += reason is None
                if reason not in (None, "crowd", "ignored"):
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
        return usable, {reason: len(ids) for reason, ids in reasons.items()}


def images_to_learn(
    file: CocoFile, *, keep_empty: bool, min_size: int
) -> tuple[list[int], dict[str, int]]:
    """Images of a file that training uses.

    Args:
        file: The annotations.
        keep_empty: Keep images without annotations.
        min_size: Smallest side in pixels.

    Returns:
        Their indices, and how many are left out for each reason, with the setting that does it.
    """
    kept: list[int] = []
    left_out: Counter[str] = Counter()
    for index, picture in enumerate(file.pictures):
        if min(picture.size) < min_size:
            left_out[f"with a side below {min_size} pixels (data.min_size)"] += 1
        elif not (keep_empty or file.num_annotations[index]):
            left_out["without annotations (data.keep_empty)"] += 1
        else:
            kept.append(index)
    return kept, dict(left_out)


def why_unusable(
    annotation: Annotation, size: tuple[int, int], needs_mask: bool = True
) -> str | None:
    """Why an object is left out of training, or None if it is not."""
    if annotation["iscrowd"]:
        return "crowd"
    if annotation.get("ignore"):
        return "ignored"
    _, _, width, height = annotation["bbox"]
    if annotation["area"] <= 0 or width < 1 or height < 1:
        return "no area"
    x1, y1, x2, y2 = clipped_box(annotation, size)
    if min(x2 - x1, y2 - y1) < _MIN_SIDE:
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
