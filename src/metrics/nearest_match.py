"""AP as in PASCAL VOC: a detection is compared with the annotation that it overlaps most.

(In COCO it is compared with the best annotation that no other detection has taken.) `VOCMetric` and
`OpenImagesMetric` share this file. Boxes are arrays ``x1, y1, x2, y2``, ``(N, 4)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Boxes = NDArray[np.float64]
Flags = NDArray[np.bool_]
Hits = tuple[NDArray[np.float64], Flags]
"""Scores of the detections that count, and whether each is right."""

Match = Callable[[Boxes, NDArray[np.float64], Boxes, Flags], Hits]
"""Compares the detections of an image, best first, with its annotations of the same class:
``match(found boxes, their scores, annotated boxes, their flags)``."""

_RECALLS = np.linspace(0, 1, 11)


def score_classes(
    images: Iterable[tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
    num_classes: int,
    match: Match,
    flags: Sequence[str],
    *,
    counts_flagged: bool,
    eleven_points: bool = False,
) -> dict[str, Tensor]:
    """Mean AP and AP of every class.

    Args:
        images: COCO annotations and COCO results of each image, with class indices.
        num_classes: Number of classes.
        match: Compares the detections of an image and a class with its annotations.
        flags: Keys of the annotations, of which one must be set for the flag that ``match`` needs.
        counts_flagged: Whether annotations with the flag must be found.
        eleven_points: See `average_precision`.

    Returns:
        ``bbox_AP``, -1 if there is nothing to find, and of shape ``(num_classes,)``
        ``bbox_class_AP``, NaN for a class without annotations to find, and ``class_objects``, the
        number of annotations to find, int64.
    """
    hits: dict[int, list[Hits]] = defaultdict(list)
    number = np.zeros(num_classes, dtype=np.int64)
    for of_image, results in images:
        truth, found = _by_class(of_image), _by_class(results)
        for label in truth.keys() | found.keys():
            is_set = [any(annotation.get(flag) for flag in flags) for annotation in truth[label]]
            flagged = np.array(is_set, dtype=bool)
            number[label] += len(flagged) if counts_flagged else (~flagged).sum()
            best_first = sorted(found[label], key=lambda result: -float(result["score"]))
            scores = np.array([result["score"] for result in best_first], dtype=float)
            hits[label].append(match(_corners(best_first), scores, _corners(truth[label]), flagged))
    per_class = [
        _of_class(hits[label], int(number[label]), eleven_points) for label in range(num_classes)
    ]
    scores_of_classes = torch.tensor(per_class, dtype=torch.float64)
    mean = scores_of_classes.nanmean().nan_to_num(-1.0)
    objects = torch.from_numpy(number)
    return {"bbox_AP": mean, "bbox_class_AP": scores_of_classes, "class_objects": objects}


def assign_nearest(overlaps: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.int64]:
    """Annotation that each detection overlaps most.

    Args:
        overlaps: IoU, ``(N, M)``.
        threshold: Smallest IoU.

    Returns:
        Index of the annotation, -1 if the IoU is below the threshold, ``(N,)``.
    """
    if not overlaps.size:
        return np.full(len(overlaps), -1, dtype=np.int64)
    return np.where(overlaps.max(axis=1) >= threshold, overlaps.argmax(axis=1), -1)


def is_first(assigned: NDArray[np.int64]) -> Flags:
    """Whether a detection, best first, is the first one with its annotation; not for -1."""
    first = np.zeros(len(assigned), dtype=bool)
    first[np.unique(assigned, return_index=True)[1]] = True
    return first & (assigned >= 0)


def intersections(a: Boxes, b: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Area ``(N, M)`` of the intersections; see `areas` for ``extra``."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    extent = np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner + extra
    return np.asarray(np.maximum(extent, 0).prod(axis=2))


def areas(boxes: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Area ``(N,)``; with ``extra`` 1, boxes include their last column and row."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1))


def ious(a: Boxes, b: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Intersection over union, ``(N, M)``; see `areas` for ``extra``."""
    shared = intersections(a, b, extra)
    return shares(shared, areas(a, extra)[:, None] + areas(b, extra) - shared)


def shares(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part by whole; 0 where the whole is empty, as for boxes without area."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def average_precision(right: Flags, number: int, eleven_points: bool) -> float:
    """AP of a class from its precision-recall curve.

    The interpolated precision at a recall is the highest one at this or a higher recall.

    Args:
        right: Whether each detection is right, best first.
        number: Annotations to find.
        eleven_points: Mean of the interpolated precision at the recalls 0, 0.1, ..., 1; otherwise
            the area under the interpolated curve.
    """
    hits = np.cumsum(right)
    recall, precision = hits / number, hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        return float(np.append(best, 0.0)[np.searchsorted(recall, _RECALLS)].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _of_class(hits: Sequence[Hits], number: int, eleven_points: bool) -> float:
    if not number:
        return float("nan")
    scores = np.concatenate([values for values, _ in hits])
    right = np.concatenate([flags for _, flags in hits])
    order = np.argsort(-scores, kind="stable")
    return average_precision(right[order], number, eleven_points)


def _by_class(entries: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        found[entry["category_id"]].append(entry)
    return found


def _corners(entries: Sequence[dict[str, Any]]) -> Boxes:
    box = np.array([entry["bbox"] for entry in entries], dtype=float).reshape(-1, 4)
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
