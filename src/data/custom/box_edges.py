"""Boxes that reach past the edge of their image, as boxes written as two corners do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.formats.coco_entries import shown
from src.data.formats.coco_json import CocoFile
from src.errors import UserError, agreed

_ROUNDING = 1.0  # pixels past the edge that are not worth a note


def check_edges(file: CocoFile, entries: list[Any]) -> list[str]:
    """Count the boxes that reach past the edge of their image.

    The note leaves out annotations that training does not use, which `CocoFile` reports.

    Args:
        file: The checked annotations.
        entries: List ``annotations`` of the file, for the ids.

    Returns:
        A note, if there are such boxes.

    Raises:
        UserError: If most boxes do, and all of them are inside as ``x1, y1, x2, y2``.
    """
    boxes, limits = file.boxes()
    past = np.maximum(boxes[:, :2] + boxes[:, 2:] - limits, -boxes[:, :2]).max(axis=1, initial=0)
    is_past = past > _ROUNDING
    are_corners = _are_corners(boxes, limits)
    is_refused = are_corners and is_past.sum() > len(boxes) / 2
    rows = np.flatnonzero(is_past if is_refused else is_past & file.is_usable())
    if not len(rows):
        return []
    first, number = entries[rows[0]], len(rows)
    name = f"annotation {shown(first['id'])}" if "id" in first else "one without id"
    counts = f"{number} of {len(boxes)} {agreed(len(boxes), 'box', 'boxes')}"
    reach = agreed(number, "reaches", "reach")
    if is_refused:
        box = shown(first["bbox"])
        raise UserError(
            f"{counts} in {file.path} {reach} past the edge of their image, but all are inside it"
            f" if they are x1, y1, x2, y2 (the first is {name}: {box}); COCO boxes are x, y, width,"
            " height, so write [x1, y1, x2 - x1, y2 - y1]."
        )
    hint = ". Are they x1, y1, x2, y2? All would be inside; COCO boxes are x, y, width, height"
    return [
        f"{counts} in {file.path} {reach} past the edge of the image, by up to"
        f" {past[rows].max():.0f} pixels (the first is {name}); training clips"
        f" {agreed(number, 'it', 'them')}{hint * are_corners}"
    ]


def _are_corners(boxes: NDArray[np.float64], limits: NDArray[np.int64]) -> bool:
    """Whether all boxes are inside their image if read as ``x1, y1, x2, y2``."""
    is_ordered = boxes[:, 2:] >= boxes[:, :2]
    is_inside = (boxes[:, 2:] <= limits + _ROUNDING) & (boxes[:, :2] >= -_ROUNDING)
    return bool((is_ordered & is_inside).all())
