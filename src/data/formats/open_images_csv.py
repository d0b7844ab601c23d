"""Read OpenImages: csv files of boxes and of labels of whole images, and the class hierarchy."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError

_BOX = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
_LABEL = ("ImageID", "LabelName", "Confidence")


def read_classes(path: Path) -> dict[str, str]:
    """Machine id and name of each class in label order, from ``class-descriptions-boxable.csv``.

    Raises:
        UserError: If the file is missing or malformed.
    """
    with _opened(path) as lines:
        rows = [row for row in lines if row]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(
            f"{path} is not a list of classes; expected lines such as /m/011k07,Tortoise."
        )
    return {row[0]: row[1] for row in rows}


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
            is_absent = float(confidence) == 0
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}.") from error
        lists = found.setdefault(image, ([], []))
        lists[is_absent].append(_label(label, label_of, path, line))
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a hierarchy of the classes: {error!r}; expected nested objects with "
            "LabelName and Subcategory."
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


class _opened:  # noqa: N801  a context manager
    """Lines of a csv file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist; check data.root and its name.")
        self.file = path.open(encoding="utf-8", newline="")

    def __enter__(self) -> Any:
        return csv.reader(self.file)

    def __exit__(self, *error: object) -> None:
        self.file.close()
