"""Read OpenImages: csv files of boxes and of labels of whole images, and the class hierarchy."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.data.formats.coco_entries import shown
from src.errors import MALFORMED_CONTENT, UserError

_BOX = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
_LABEL = ("ImageID", "LabelName", "Confidence")


def read_classes(path: Path) -> dict[str, str]:
    """Machine id and name of each class in label order, from ``class-descriptions-boxable.csv``.

    Raises:
        UserError: If the file is missing or malformed, or has a class twice.
    """
    with _opened(path) as lines:
        rows = [row for row in lines if row]
    if rows and rows[0][0] == "LabelName":  # the files of V7 have a header
        del rows[0]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(
            f"{path} is not a list of classes; expected lines such as /m/011k07,Tortoise."
        )
    names = {row[0]: row[1] for row in rows}
    if len(names) < len(rows):
        twice, _ = Counter(row[0] for row in rows).most_common(1)[0]
        raise UserError(f"{path} lists the class {twice!r} more than once.")
    return names


def read_boxes(path: Path, label_of: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Boxes of each image, in the order of the file, with corners relative to the image.

    Args:
        path: The csv file.
        label_of: Label of each machine id.

    Returns:
        By image id: ``label``, ``corners`` ``(x1, y1, x2, y2)`` in [0, 1] and ``is_group_of``.

    Raises:
        UserError: If the file is missing or malformed.
    """
    boxes: dict[str, list[dict[str, Any]]] = {}
    for line, (image, label, *corners, group) in _rows(path, _BOX):
        try:
            x1, y1, x2, y2 = map(float, corners)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}.") from error
        box = {"label": _label(label, label_of, path, line), "corners": (x1, y1, x2, y2)}
        boxes.setdefault(image, []).append(box | {"is_group_of": group.strip() == "1"})
    return boxes


def read_image_level_labels(
    path: Path, label_of: Mapping[str, int]
) -> dict[str, tuple[list[int], list[int]]]:
    """Classes that people found in each image, and those that they did not find.

    Args:
        path: The csv file.
        label_of: Label of each machine id.

    Raises:
        UserError: If the file is missing or malformed.
    """
    found: dict[str, tuple[list[int], list[int]]] = {}
    for line, (image, label, confidence) in _rows(path, _LABEL):
        try:
            value = float(confidence)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}.") from error
        if not 0 <= value <= 1:
            raise UserError(f"{path}, line {line}: the confidence is {value}; expected 0 to 1.")
        lists = found.setdefault(image, ([], []))
        lists[value == 0].append(_label(label, label_of, path, line))
    return found


def read_ancestors(path: Path, label_of: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """All more general classes of each class.

    Args:
        path: The hierarchy, ``bbox_labels_600_hierarchy.json``. Its root is no class.
        label_of: Label of each machine id.

    Raises:
        UserError: If the file is missing or malformed.
    """
    if not path.is_file():
        raise UserError(
            f"The hierarchy of the classes {path} does not exist; check data.root and "
            "data.hierarchy, or set data.hierarchy to null to count every class by itself."
        )
    found: list[set[int]] = [set() for _ in label_of]
    try:
        _walk(json.loads(path.read_text(encoding="utf-8")), (), label_of, found)
    except MALFORMED_CONTENT as error:
        raise UserError(
            f"{path} is not a hierarchy of the classes: {shown(error)}; expected nested objects "
            "with LabelName and Subcategory."
        ) from error
    return tuple(tuple(sorted(general)) for general in found)


def _walk(
    node: Mapping[str, Any],
    above: Sequence[int],
    label_of: Mapping[str, int],
    found: Sequence[set[int]],
) -> None:
    for child in node.get("Subcategory", []):
        label = label_of[child["LabelName"]]
        found[label].update(set(above) - {label})
        _walk(child, (*above, label), label_of, found)


def _label(name: str, label_of: Mapping[str, int], path: Path, line: int) -> int:
    if name not in label_of:
        raise UserError(
            f"{path}, line {line}: the class {name!r} is not in the list of classes "
            "(data.class_file)."
        )
    return label_of[name]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each line."""
    with _opened(path) as lines:
        head: list[str] = next(lines, [])
        absent = [name for name in columns if name not in head]
        if absent:
            raise UserError(f"{path} has no column {', '.join(absent)}; its columns are {head}.")
        places = [head.index(name) for name in columns]
        for row in lines:
            if not row:
                continue
            if len(row) < len(head):
                raise UserError(
                    f"{path}, line {lines.line_num}: {len(row)} values for {len(head)} columns."
                )
            yield lines.line_num, [row[place] for place in places]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Lines of a csv file.

    Raises:
        UserError: If the file is missing or is not csv in UTF-8.
    """
    if not path.is_file():
        raise UserError(f"The file {path} does not exist; check data.root and its name.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a csv file in UTF-8: {error}.") from error
