"""Which box is trained towards which object: assignment by overlap and random sampling.

Rules of mmdet 2.x (MaxIoUAssigner, RandomSampler), which the official detectors use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.models.detection.boxes import pairwise_iou

IGNORED, BACKGROUND = -1, 0
Choose = Callable[[Tensor, int], Tensor]


class MaxIoUAssigner:
    """Give every box the object that it overlaps most, if enough.

    Args:
        positive_iou: From this overlap on a box is an object.
        negative_iou: Below this overlap a box is background; in between it is ignored.
        low_quality_iou: If given, the best boxes of each object are positive from this overlap on,
            although they are below ``positive_iou``; of several objects the last one counts.
    """

    def __init__(
        self, positive_iou: float, negative_iou: float, low_quality_iou: float | None = None
    ) -> None:
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality_iou = low_quality_iou

    def __call__(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Assign objects ``(G, 4)`` to boxes ``(N, 4)``.

        Returns:
            int64 ``(N,)``: 1 + index of the object, `BACKGROUND` or `IGNORED`.
        """
        assigned = boxes.new_full((len(boxes),), IGNORED, dtype=torch.long)
        if not len(objects) or not len(boxes):
            return assigned.fill_(BACKGROUND)
        overlaps = pairwise_iou(objects, boxes)  # (G, N)
        best_overlap, best_object = overlaps.max(dim=0)
        assigned[best_overlap < self.negative_iou] = BACKGROUND
        assigned = torch.where(best_overlap >= self.positive_iou, best_object + 1, assigned)
        if self.low_quality_iou is None:
            return assigned
        best_of_object = overlaps.amax(dim=1, keepdim=True)  # (G, 1)
        is_best = (overlaps == best_of_object) & (best_of_object >= self.low_quality_iou)
        number = torch.arange(1, len(objects) + 1, device=boxes.device)[:, None]
        last = (is_best * number).amax(dim=0)
        return torch.where(last > 0, last, assigned)


@dataclass
class Sample:
    """The boxes of one image that are trained on: first the positive, then the negative ones.

    Attributes:
        positive: Indices of boxes with an object, ascending, ``(P,)``.
        negative: Indices of background boxes, ascending, ``(Q,)``.
        objects: Index of the object of each positive box, ``(P,)``.
    """

    positive: Tensor
    negative: Tensor
    objects: Tensor


def choose_randomly(candidates: Tensor, number: int) -> Tensor:
    """``number`` of the candidates, all equally likely."""
    order = torch.randperm(len(candidates), device=candidates.device)
    return candidates[order[:number]]


class RandomSampler:
    """Take a fixed number of boxes with a limited share of positive ones.

    Args:
        number: Boxes per image; missing positive ones are replaced by negative ones.
        positive_fraction: Largest share of positive boxes, in (0, 1].
        choose: How to choose some of too many candidates; replaced in tests.
    """

    def __init__(
        self, number: int, positive_fraction: float, choose: Choose = choose_randomly
    ) -> None:
        self.number = number
        self.positive_fraction = positive_fraction
        self.choose = choose

    def __call__(self, assigned: Tensor) -> Sample:
        """Sample from an assignment ``(N,)`` of `MaxIoUAssigner`."""
        positive = self._take(assigned > BACKGROUND, int(self.number * self.positive_fraction))
        negative = self._take(assigned == BACKGROUND, self.number - len(positive))
        return Sample(positive, negative, assigned[positive] - 1)

    def _take(self, candidates: Tensor, number: int) -> Tensor:
        indices = candidates.nonzero().flatten()
        if len(indices) > number:
            indices = self.choose(indices, number).sort().values
        return indices
