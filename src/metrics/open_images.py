"""Mean average precision of OpenImages at an IoU of 0.5.

Source: https://storage.googleapis.com/openimages/web/evaluation.html. As in mmdetection 2.28, which
the published numbers are from:

- A box or detection also counts for all more general classes: a "Jaguar" is an "Animal".
- Detections of a class count only in images with a box of it, or with a label of the whole image
  that says whether the class is present. Labels of whole images are not extended to more general
  classes.
- A box around a group (``is_group_of``, or ``iscrowd`` in annotation files that were converted to
  COCO's format) counts as one object. Of the detections that find no other box and lie in it
  by half of their area, the best one is right, and the others are left out.
- AP is the area under the interpolated precision-recall curve; the mean is over classes with boxes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from src.errors import UserError
from src.metrics.gathered import GatheredMetric, ScoredImage
from src.metrics.nearest_match import (
    Boxes,
    Flags,
    Hits,
    areas,
    assign_nearest,
    intersections,
    ious,
    is_first,
    score_classes,
    shares,
)
from src.types import ImageId

Entries = list[dict[str, Any]]


class OpenImagesMetric(GatheredMetric):
    """Mean AP of boxes at an IoU of 0.5, and AP of every class.

    Args:
        num_classes: Number of classes.
        kinds: What the detector predicts; only boxes are scored.
    """

    def __init__(self, num_classes: int, kinds: Sequence[str] = ("bbox",)) -> None:
        super().__init__(num_classes)

    @property
    def score_names(self) -> tuple[str, ...]:
        """``bbox_AP``."""
        return ("bbox_AP",)

    def score(self, images: dict[ImageId, ScoredImage]) -> dict[str, Tensor]:
        """Score images.

        Returns:
            ``bbox_AP`` in [0, 1], or -1 if there is nothing to score; ``bbox_class_AP`` of every
            class, shape ``(num_classes,)``, NaN for a class without boxes.

        Raises:
            UserError: If the dataset gives the hierarchy of other classes.
        """
        ancestors = self.class_facts.ancestors or ((),) * self.num_classes
        if len(ancestors) != self.num_classes:
            raise UserError(
                f"The metric of OpenImages has the hierarchy of {len(ancestors)} classes, but the "
                f"network has {self.num_classes}; use the same class file for training and "
                "evaluation."
            )
        return score_classes(
            _extended(images.values(), ancestors),
            self.num_classes,
            _match,
            ("is_group_of", "iscrowd"),
            counts_flagged=True,
        )


def _extended(
    images: Iterable[ScoredImage], ancestors: Sequence[Sequence[int]]
) -> Iterator[tuple[Entries, Entries]]:
    """Annotations and results of each image, with general classes, of the checked classes."""
    for image in images:
        checked = {*image.labels.present, *image.labels.absent}
        for annotation in image.annotations:
            label = annotation["category_id"]
            checked.update((label, *ancestors[label]))
        yield (
            _with_ancestors(image.annotations, ancestors, checked),
            _with_ancestors(image.results, ancestors, checked),
        )


def _with_ancestors(
    entries: Entries, ancestors: Sequence[Sequence[int]], checked: Container[int]
) -> Entries:
    """The entries, and each of them again for every more general class, of the checked classes."""
    return [
        entry | {"category_id": label}
        for entry in entries
        for label in (entry["category_id"], *ancestors[entry["category_id"]])
        if label in checked
    ]


def _match(found: Boxes, scores: NDArray[np.float64], truth: Boxes, is_group: Flags) -> Hits:
    right = is_first(assign_nearest(ious(found, truth[~is_group])))
    shared = intersections(found, truth[is_group])
    inside = shares(shared, np.broadcast_to(areas(found)[:, None], shared.shape))
    group = np.where(right, -1, assign_nearest(inside))
    is_best = is_first(group)
    counted = (group < 0) | is_best
    return scores[counted], (right | is_best)[counted]
