"""Entries of COCO annotation files: what each must hold, and one sentence for what it lacks."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.run_length import run_lengths
from src.errors import UserError
from src.types import PictureId

Annotation = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """An entry of ``images``: its number, its file, its height and width in pixels."""

    id: PictureId
    file_name: str
    size: tuple[int, int]


def check_categories(entries: list[Any], path: Path) -> dict[int, str]:
    """Number and name of every category, in the order of the numbers."""
    found: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys():
            raise UserError(f"{path}: a category must have 'id' and 'name', got {entry!r}.")
        if not isinstance(entry["id"], int):
            raise UserError(
                f"{path}: the category {entry['name']!r} has the id {entry['id']!r}; expected is a "
                "whole number."
            )
        if entry["id"] in found:
            raise UserError(f"{path} lists the category id {entry['id']} twice.")
        found[entry["id"]] = str(entry["name"])
    if not found:
        raise UserError(f"{path} lists no categories, so there is nothing to detect.")
    return dict(sorted(found.items()))


def find_categories(
    listed: Mapping[int, str], classes: Mapping[str, int], path: Path
) -> dict[int, str]:
    """Number and name of every class in label order, with the file's numbers where it has any.

    Args:
        listed: Number and name of the file's categories.
        classes: Names in label order, each with its number if the file has none.
        path: The file.
    """
    unknown = [name for name in listed.values() if name not in classes]
    if unknown:
        raise UserError(
            f"{path} lists the category {unknown[0]!r}, which is not among the "
            f"{len(classes)} names of data.class_names; leave class_names out to take the names of "
            "the file."
        )
    name, times = Counter(listed.values()).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} lists {times} categories named {name!r}, so data.class_names cannot tell them "
            "apart; leave class_names out, or give them different names."
        )
    number_of = {name: number for number, name in listed.items()}
    spare = itertools.count(max([*listed, *classes.values()]) + 1)
    return {
        number_of.get(name, next(spare) if wish in listed else wish): name
        for name, wish in classes.items()
    }


def check_picture(entry: Any, path: Path) -> Picture:
    """An entry of ``images``."""
    needed = ("id", "file_name", "height", "width")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        name = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise UserError(
            f"{path}: the picture {name!r} must have 'id', 'file_name', 'height' and 'width'."
        )
    if not isinstance(entry["id"], (int, str)):
        raise UserError(f"{path}: a picture has the id {entry['id']!r}; expected is a number.")
    height, width = entry["height"], entry["width"]
    if not (_is_number(height) and _is_number(width) and min(height, width) >= 1):
        raise UserError(
            f"{path}: the picture {entry['id']!r} has height {height!r} and width {width!r}; "
            "expected are two numbers of pixels."
        )
    return Picture(entry["id"], str(entry["file_name"]), (int(height), int(width)))


def check_annotation(
    entry: Any, label_of: dict[int, int], sizes: dict[PictureId, tuple[int, int]], path: Path
) -> Annotation:
    """An entry of ``annotations``, complete and with the label as ``category_id``.

    Args:
        entry: As in the file.
        label_of: Label of each category number.
        sizes: Height and width of each picture by its number.
        path: The file.
    """
    needed = ("image_id", "category_id", "bbox")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        name = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise UserError(
            f"{path}: the annotation {name!r} must have 'image_id', 'category_id' and 'bbox'."
        )
    name = f"{path}: the annotation {entry.get('id', '(without id)')}"
    category, image = entry["category_id"], entry["image_id"]
    if not isinstance(category, int) or category not in label_of:
        raise UserError(
            f"{name} has category_id {category!r}, which is not one of the file's "
            f"categories {_shorten(list(label_of))}."
        )
    if not isinstance(image, (int, str)) or image not in sizes:
        raise UserError(
            f"{name} belongs to image_id {image!r}, which is not one of the file's images."
        )
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise UserError(f"{name} has the bbox {box!r}; expected are four numbers x, y, w, h.")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise UserError(f"{name} has iscrowd {entry['iscrowd']!r}; expected is 0 or 1.")
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, dict):
        _check_code(segmentation, sizes[image], name)
    else:
        _check_polygons(segmentation, name)
    return entry | {
        "category_id": label_of[category],
        "iscrowd": int(entry.get("iscrowd") or 0),
        "area": entry["area"] if _is_number(entry.get("area")) else box[2] * box[3],
        "segmentation": segmentation,
    }


def _check_polygons(segmentation: Any, name: str) -> None:
    lists = isinstance(segmentation, list) and all(isinstance(p, list) for p in segmentation)
    if not lists:
        raise UserError(
            f"{name} has a segmentation that is neither a list of polygons nor a run-length code."
        )
    try:  # a sum is the fastest look at all of millions of numbers
        finite = all(math.isfinite(sum(polygon)) for polygon in segmentation)
    except TypeError:
        finite = False
    if not finite:
        raise UserError(f"{name} has a polygon with coordinates that are not numbers.")


def _check_code(code: dict[str, Any], size: tuple[int, int], name: str) -> None:
    if not {"size", "counts"} <= code.keys():
        raise UserError(f"{name} has a run-length code without 'size' or 'counts'.")
    if code["size"] != list(size):
        raise UserError(
            f"{name} has a run-length code of height and width {code['size']}, but its picture is "
            f"{list(size)}."
        )
    try:
        runs = run_lengths(code["counts"])
    except ValueError as error:
        raise UserError(f"{name} has a run-length code that cannot be read: {error}.") from error
    if np.any(runs < 0) or runs.sum() != size[0] * size[1]:
        raise UserError(
            f"{name} has a run-length code of {runs.sum()} pixels, but its picture has "
            f"{size[0] * size[1]}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shorten(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
