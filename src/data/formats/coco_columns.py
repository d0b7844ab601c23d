"""Annotations of a COCO file as columns: one array per property instead of millions of objects.

Forked loader workers share the memory of an array, and checking a column takes a fraction of the
time of checking single values. Entries are converted in parts; a part with anything unusual is
checked entry by entry (`coco_entries`), which raises an error or fills in missing values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.formats.coco_entries import (
    MAX_COORDINATE,
    MAX_POLYGON_COST,
    Annotation,
    ImageEntry,
    check_annotation,
    outlines,
    polygon_cost,
)
from src.data.formats.run_length import fill_exactly

_PART = 50_000  # annotations that are converted together
_NUMBERS = {int, float}
_needed = itemgetter("image_id", "category_id", "bbox")


@dataclass(frozen=True)
class Columns:
    """Annotations in the order of a file.

    Attributes:
        image: Index of the image, ``(N,)``.
        label: Class index, ``(N,)``.
        box: ``x, y, width, height`` as in the file, ``(N, 4)``.
        area: Pixels, ``(N,)``.
        crowd: Whether ``iscrowd`` is set, ``(N,)``.
        ignore: Whether ``ignore`` is set, ``(N,)``.
        group: Whether ``is_group_of`` is set: a box around several objects, ``(N,)``.
        has_mask: Whether there is a usable mask, ``(N,)``.
        cost: Cost of drawing the polygons, see `polygon_cost`, ``(N,)``.
        polygons: Number of polygons of each annotation, ``(N,)``.
        corners: Number of coordinates of each polygon, ``(P,)``.
        coordinates: Coordinates of all polygons.
        code_bytes: Bytes of the run-length code of each annotation, ``(N,)``; 0 if it has none.
        codes: Run-length codes as json, one after the other.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int32]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    group: NDArray[np.bool_]
    has_mask: NDArray[np.bool_]
    cost: NDArray[np.float64]
    polygons: NDArray[np.int64]
    corners: NDArray[np.int64]
    coordinates: NDArray[np.float64]
    code_bytes: NDArray[np.int64]
    codes: NDArray[np.uint8]


def read_columns(
    entries: Sequence[Any], images: Sequence[ImageEntry], label_of: dict[int, int], path: Path
) -> Columns:
    """Check annotations and convert them into columns.

    Args:
        entries: List ``annotations`` of the file.
        images: Its images.
        label_of: Label of each category id.
        path: The file.

    Raises:
        UserError: If an entry is wrong; the message names file and annotation.
    """
    index_of = {image.id: index for index, image in enumerate(images)}
    extents = np.array([image.size for image in images], np.int64).reshape(-1, 2)
    sizes = {image.id: image.size for image in images}
    parts = []
    for start in range(0, len(entries), _PART):
        part = entries[start : start + _PART]
        columns = _columns(part, index_of, label_of, extents)
        if columns is None:
            checked = [
                check_annotation(entry, position, label_of, sizes, path)
                for position, entry in enumerate(part, start)
            ]
            columns = _columns(checked, index_of, label_of, extents, are_checked=True)
            assert columns is not None, "checked entries are plain"
        parts.append(columns)
    parts = parts or [_empty()]
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Columns)
    }
    return Columns(**joined)


def _columns(
    entries: Sequence[Any],
    index_of: dict[Any, int],
    label_of: dict[int, int],
    extents: NDArray[np.int64],
    *,
    are_checked: bool = False,
) -> Columns | None:
    """Columns of entries, or None if any of them must be checked by itself."""
    if not entries or set(map(type, entries)) != {dict}:
        return None
    try:
        images, categories, boxes = zip(*map(_needed, entries), strict=True)
        image = np.fromiter(map(index_of.__getitem__, images), np.int64, len(entries))
        label = np.fromiter(map(label_of.__getitem__, categories), np.int32, len(entries))
        if not (_is_plain(images) and _is_plain(categories)):
            return None
        crowds = [entry.get("iscrowd", 0) for entry in entries]
        if not set(crowds) <= {0, 1, None} or set(map(type, boxes)) != {list}:
            return None
        box = _floats(list(chain.from_iterable(boxes)))
        areas = [entry.get("area") for entry in entries]
        area = np.array([a if type(a) in _NUMBERS else math.nan for a in areas], np.float64)
    except (KeyError, TypeError, OverflowError):  # a value is missing or has another type
        return None
    if set(map(len, boxes)) != {4} or np.abs(box).max() > MAX_COORDINATE:
        return None
    box = box.reshape(-1, 4)
    if not np.nanmax(np.abs(area), initial=0) <= MAX_COORDINATE**2:
        return None
    area = np.where(np.isnan(area), box[:, 2] * box[:, 3], area)
    segmentations = [entry.get("segmentation") or () for entry in entries]
    shapes = _shapes(segmentations, extents[image], are_checked)
    if shapes is None:
        return None
    return Columns(
        image=image,
        label=label,
        box=box,
        area=area,
        crowd=np.fromiter(map(bool, crowds), bool, len(entries)),
        ignore=_flags(entries, "ignore"),
        group=_flags(entries, "is_group_of"),
        **shapes,
    )


def _flags(entries: Sequence[Any], key: str) -> NDArray[np.bool_]:
    return np.fromiter((bool(entry.get(key)) for entry in entries), bool, len(entries))


def _shapes(
    segmentations: Sequence[Any], extents: NDArray[np.int64], are_checked: bool
) -> dict[str, Any] | None:
    """Columns of polygons and run-length codes; None if they must be checked one by one."""
    codes = [b""] * len(segmentations)
    kinds = set(map(type, segmentations))
    if dict in kinds:
        if not (are_checked or _are_whole_codes(segmentations, extents)):
            return None
        codes = [
            json.dumps(shape["counts"]).encode() if isinstance(shape, dict) else b""
            for shape in segmentations
        ]
        segmentations = [() if isinstance(shape, dict) else shape for shape in segmentations]
    if not kinds <= {list, tuple, dict}:
        return None
    outer = list(chain.from_iterable(segmentations))
    if not set(map(type, outer)) <= {list}:
        return None
    polygons = np.fromiter(map(len, segmentations), np.int64, len(segmentations))
    corners = np.fromiter(map(len, outer), np.int64, len(outer))
    try:
        coordinates = _floats(list(chain.from_iterable(outer)))
    except (TypeError, OverflowError):
        return None
    if len(coordinates) and np.abs(coordinates).max() > MAX_COORDINATE:
        return None
    cost = polygon_cost(_sums(outlines(coordinates, corners), polygons), polygons)
    if cost.max() > MAX_POLYGON_COST:
        return None
    usable = _sums((corners >= 6) & (corners % 2 == 0), polygons)
    code_bytes = np.fromiter(map(len, codes), np.int64, len(codes))
    return {
        "has_mask": (usable > 0) | (code_bytes > 0),
        "cost": cost,
        "polygons": polygons,
        "corners": corners,
        "coordinates": coordinates,
        "code_bytes": code_bytes,
        "codes": np.frombuffer(b"".join(codes), np.uint8),
    }


def _are_whole_codes(segmentations: Sequence[Any], extents: NDArray[np.int64]) -> bool:
    """Whether all run-length codes are intact compressed text and fill their images exactly."""
    rows = [row for row, shape in enumerate(segmentations) if isinstance(shape, dict)]
    texts = [segmentations[row].get("counts") for row in rows]
    sizes = [segmentations[row].get("size") for row in rows]
    return (
        set(map(type, texts)) == {str}
        and sizes == extents[rows].tolist()
        and fill_exactly(texts, extents[rows].prod(axis=1))
    )


def _sums(values: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of consecutive groups of ``values``, whose sizes are ``counts``."""
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.cumsum(counts)
    return np.asarray(running[ends] - running[ends - counts])


def _floats(values: list[Any]) -> NDArray[np.float64]:
    """Convert numbers to float64.

    Raises:
        TypeError: If one is not a finite number.
        OverflowError: If one is too large.
    """
    if not set(map(type, values)) <= _NUMBERS:
        raise TypeError
    numbers = np.array(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise TypeError
    return numbers


def _is_plain(ids: Sequence[Any]) -> bool:
    """Whether all are integers, or all text; 1.0 and True would be looked up as 1."""
    return set(map(type, ids)) in ({int}, {str})


def _empty() -> Columns:
    one = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 0, 0], "area": 0}
    columns = _columns([one], {0: 0}, {0: 0}, np.ones((1, 2), np.int64))
    assert columns is not None
    return Columns(**{f.name: getattr(columns, f.name)[:0] for f in fields(Columns)})


class AnnotationRows:
    """Annotations of each image, made from columns on demand.

    Args:
        columns: The annotations.
        images: The images.
    """

    def __init__(self, columns: Columns, images: Sequence[ImageEntry]) -> None:
        self.columns = columns
        self._sizes = np.array([image.size for image in images], np.int64).reshape(-1, 2)
        self._order = np.argsort(columns.image, kind="stable")
        self.counts = np.bincount(columns.image, minlength=len(images))
        self._ends = np.cumsum(self.counts)
        self._polygon_ends = np.cumsum(columns.polygons)
        self._corner_ends = np.cumsum(columns.corners)
        self._code_ends = np.cumsum(columns.code_bytes)

    def of(self, index: int) -> NDArray[np.int64]:
        """Rows of the annotations of an image, in the order of the file."""
        end = self._ends[index]
        return self._order[end - self.counts[index] : end]

    def annotation(self, row: int) -> Annotation:
        """One annotation with the class index as ``category_id``."""
        columns = self.columns
        found: Annotation = {
            "category_id": int(columns.label[row]),
            "bbox": columns.box[row].tolist(),
            "area": float(columns.area[row]),
            "iscrowd": int(columns.crowd[row]),
            "segmentation": self._segmentation(row),
        }
        if columns.ignore[row]:
            found["ignore"] = 1
        if columns.group[row]:
            found["is_group_of"] = 1
        return found

    def _segmentation(self, row: int) -> Any:
        columns = self.columns
        if length := int(columns.code_bytes[row]):
            end = int(self._code_ends[row])
            counts = json.loads(columns.codes[end - length : end].tobytes())
            return {"size": self._sizes[columns.image[row]].tolist(), "counts": counts}
        return list(self._polygons(row))

    def _polygons(self, row: int) -> Iterator[list[float]]:
        last = int(self._polygon_ends[row])
        for polygon in range(last - int(self.columns.polygons[row]), last):
            end = int(self._corner_ends[polygon])
            yield self.columns.coordinates[end - int(self.columns.corners[polygon]) : end].tolist()

    def extents(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Width and height of the image of each annotation, ``(N, 2)``."""
        return self._sizes[self.columns.image[rows]][:, ::-1]

    def clipped_boxes(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """Boxes as ``x1, y1, x2, y2``, clipped to their images, ``(N, 4)``."""
        box = self.columns.box[rows]
        corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
        return np.asarray(np.clip(corners, 0, np.tile(self.extents(rows), 2)))
