"""Assignment of ground-truth boxes to anchors and proposals, and sampling for training.

Rules of mmdet 2.x (MaxIoUAssigner, RandomSampler), which the official detectors use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.models.detection.boxes import pairwise_iou
from src.types import DetectionTarget

IGNORED, BACKGROUND = -1, 0
Choose = Callable[[Tensor, int], Tensor]


class MaxIoUAssigner:
    """Assign to every box the ground-truth box that it overlaps most, if enough.

    Args:
        positive_iou: IoU from which on a box is positive.
        negative_iou: IoU below which a box is background; in between it is ignored.
        low_quality_iou: If given, the best boxes of each ground-truth box are positive from this
            IoU on, although they are below ``positive_iou``; the last of several ground-truth boxes
            counts.
    """

    def __init__(
        self, positive_iou: float, negative_iou: float, low_quality_iou: float | None = None
    ) -> None:
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality_iou = low_quality_iou

    def __call__(self, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """Assign ground-truth boxes ``(G, 4)`` to boxes ``(N, 4)``.

        Returns:
            int64 ``(N,)``: 1 + index of the ground-truth box, `BACKGROUND` or `IGNORED`.
        """
        assigned = boxes.new_full((len(boxes),), IGNORED, dtype=torch.long)
        if not len(gt_boxes) or not len(boxes):
            return assigned.fill_(BACKGROUND)
        overlaps = pairwise_iou(gt_boxes, boxes)  # (G, N)
        best_overlap, best_gt = overlaps.max(dim=0)
        assigned[best_overlap < self.negative_iou] = BACKGROUND
        assigned = torch.where(best_overlap >= self.positive_iou, best_gt + 1, assigned)
        if self.low_quality_iou is None:
            return assigned
        best_of_gt = overlaps.amax(dim=1, keepdim=True)  # (G, 1)
        is_best = (overlaps == best_of_gt) & (best_of_gt >= self.low_quality_iou)
        number = torch.arange(1, len(gt_boxes) + 1, device=boxes.device)[:, None]
        last = (is_best * number).amax(dim=0)
        return torch.where(last > 0, last, assigned)


@dataclass
class Sample:
    """Boxes of one image that are trained on.

    Attributes:
        positive: Indices of boxes with a ground-truth box, ascending, ``(P,)``.
        negative: Indices of background boxes, ascending, ``(Q,)``.
        matched_gt: Index of the ground-truth box of each positive box, ``(P,)``.
    """

    positive: Tensor
    negative: Tensor
    matched_gt: Tensor


def choose_randomly(candidates: Tensor, number: int) -> Tensor:
    """``number`` of the candidates, all equally likely."""
    order = torch.randperm(len(candidates), device=candidates.device)
    return candidates[order[:number]]


class RandomSampler:
    """Sample a fixed number of boxes with a limited share of positive ones.

    Args:
        number: Boxes per image; negative ones take the place of missing positive ones.
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


@dataclass
class RegionSample:
    """Proposals of one image that are trained on, positive ones first.

    Attributes:
        boxes: ``(R, 4)``.
        labels: Class, or the number of classes for background, ``(R,)``.
        matched_gt: Index of the ground-truth box of each positive proposal, ``(P,)``.
        is_gt: Which boxes are ground-truth boxes themselves, bool ``(R,)``.
    """

    boxes: Tensor
    labels: Tensor
    matched_gt: Tensor
    is_gt: Tensor

    @property
    def positive(self) -> Tensor:
        """Boxes of the positive proposals, ``(P, 4)``."""
        return self.boxes[: len(self.matched_gt)]

    @property
    def positive_labels(self) -> Tensor:
        """Classes of the positive proposals, ``(P,)``."""
        return self.labels[: len(self.matched_gt)]


class RegionSampler:
    """Sample the proposals that the heads are trained on; ground-truth boxes count as proposals.

    Args:
        num_classes: Classes without background; this number labels the background.
        iou: IoU from which on a proposal is positive, below it background.
        low_quality: Whether the best proposal of a ground-truth box is positive from ``iou`` on
            even if it overlaps another one more.
        number: Proposals per image.
        positive_fraction: Largest share of positive ones.
    """

    def __init__(
        self,
        num_classes: int,
        iou: float,
        *,
        low_quality: bool,
        number: int = 512,
        positive_fraction: float = 0.25,
    ) -> None:
        self.num_classes = num_classes
        self.assigner = MaxIoUAssigner(iou, iou, low_quality_iou=iou if low_quality else None)
        self.sampler = RandomSampler(number, positive_fraction)

    def __call__(self, proposals: Tensor, target: DetectionTarget) -> RegionSample:
        """Sample from the proposals ``(N, 4)`` and the ground truth of one image."""
        gt_boxes, labels = target["boxes"].to(proposals), target["labels"]
        itself = torch.arange(1, len(gt_boxes) + 1, device=labels.device)
        sample = self.sampler(torch.cat([itself, self.assigner(proposals, gt_boxes)]))
        chosen = torch.cat([sample.positive, sample.negative])
        background = labels.new_full((len(sample.negative),), self.num_classes)
        return RegionSample(
            boxes=torch.cat([gt_boxes, proposals])[chosen],
            labels=torch.cat([labels[sample.matched_gt], background]),
            matched_gt=sample.matched_gt,
            is_gt=chosen < len(gt_boxes),
        )
