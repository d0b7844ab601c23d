"""Mean average precision of PASCAL VOC at an IoU of 0.5.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge" (IJCV 2010), and its
development kits: coordinates are indices of pixels, so a box includes its last column and row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from src.metrics.gathered import GatheredMetric, ScoredImage
from src.metrics.nearest_match import (
    Boxes,
    Flags,
    Hits,
    assign_nearest,
    ious,
    is_first,
    score_classes,
)
from src.types import ImageId


class VOCMetric(GatheredMetric):
    """Mean AP of boxes at an IoU of 0.5, and AP of every class.

    A detection is right if the annotation of its class that it overlaps most has an IoU of at least
    0.5 and no better detection has taken it. Annotations with ``ignore`` (difficult ones) need not
    be found, and detections of them are left out. The same holds for ``iscrowd``, which annotation
    files of COCO's format may have instead.

    Args:
        num_classes: Number of classes.
        kinds: What the detector predicts; only boxes are scored.
        eleven_points: Mean of the interpolated precision at 11 values of recall, as in VOC 2007;
            otherwise the area under the interpolated curve, as from VOC 2010 on.
    """

    def __init__(
        self, num_classes: int, kinds: Sequence[str] = ("bbox",), eleven_points: bool = False
    ) -> None:
        super().__init__(num_classes)
        self.eleven_points = eleven_points

    @property
    def score_names(self) -> tuple[str, ...]:
        """``bbox_AP``."""
        return ("bbox_AP",)

    def score(self, images: dict[ImageId, ScoredImage]) -> dict[str, Tensor]:
        """Score images.

        Returns:
            ``bbox_AP`` in [0, 1], or -1 if there is nothing to score; ``bbox_class_AP`` of every
            class, shape ``(num_classes,)``, NaN for a class without annotations.
        """
        return score_classes(
            ((image.annotations, image.results) for image in images.values()),
            self.num_classes,
            _match,
            ("ignore", "iscrowd"),
            counts_flagged=False,
            eleven_points=self.eleven_points,
        )


def _match(found: Boxes, scores: NDArray[np.float64], truth: Boxes, ignored: Flags) -> Hits:
    assigned = assign_nearest(ious(found, truth, extra=1))
    right = is_first(assigned)
    counted = ~((assigned >= 0) & np.append(ignored, False)[assigned])
    return scores[counted], right[counted]
