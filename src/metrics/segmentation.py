"""mIoU, mAcc and aAcc as in the official code, from one confusion matrix.

Pixels of all images on all ranks are counted in integers, so the result does not depend on batch
size, order or number of ranks. As in mmsegmentation 0.27, a class that is neither in the labels nor
predicted is left out of the means instead of counting as 0 or 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.metrics.base import ScoreMetric
from src.types import IGNORE_LABEL


class SegmentationMetric(ScoreMetric):
    """Confusion matrix of pixels, and the three metrics of ADE20K.

    Args:
        num_classes: Number of classes.
    """

    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # The last column counts pixels without a valid prediction.
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scalars that `compute` returns."""
        return "mIoU", "mAcc", "aAcc"

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of an image.

        Args:
            prediction: Classes in ``[0, num_classes)``, any shape, integers; ``num_classes`` counts
                as wrong for every label.
            label: True classes of the same shape; pixels of 255 are not counted.
        """
        valid = label != IGNORE_LABEL
        pairs = label[valid].long() * (self.num_classes + 1) + prediction[valid].long()
        counts = torch.bincount(pairs, minlength=self.confusion.numel())
        self.confusion += counts.view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores, float64 in [0, 1].

        Returns:
            Scalars ``mIoU``, ``mAcc`` and ``aAcc``, and ``IoU`` and ``Acc`` of every class, shape
            ``(num_classes,)``. NaN if the denominator is zero. ``pixels``, int64, are the labelled
            pixels of every class.
        """
        # float64 is exact up to counts of 2**53, but not every device has it.
        confusion = self.confusion.cpu().double()
        hits = confusion.diagonal()
        labelled, predicted = confusion.sum(1), confusion.sum(0)[: self.num_classes]
        iou = hits / (labelled + predicted - hits)
        accuracy = hits / labelled
        return {
            "mIoU": iou.nanmean(),
            "mAcc": accuracy.nanmean(),
            "aAcc": hits.sum() / labelled.sum(),
            "pixels": self.confusion.cpu().sum(1),
            "IoU": iou,
            "Acc": accuracy,
        }
