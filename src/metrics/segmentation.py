"""mIoU, mAcc and aAcc with the official definitions, from one confusion matrix.

The counts of all images of all processes are added as integers, so the result does not depend on
batch size, order or number of processes. Classes that are neither in the labels nor predicted are
left out of the means (as mmsegmentation 0.27 does), not counted as 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from src.types import IGNORE_LABEL


class SegmentationMetric(Metric):
    """Confusion matrix of pixels, and the three numbers that ADE20K is judged by.

    Args:
        num_classes: Number of classes.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # The last column counts pixels whose class is not known.
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of an image.

        Args:
            prediction: Classes in ``[0, num_classes)``, any shape, integers; ``num_classes`` is
                wrong whatever the label says.
            label: True classes of the same shape; 255 counts nowhere.
        """
        valid = label != IGNORE_LABEL
        pairs = label[valid].long() * (self.num_classes + 1) + prediction[valid].long()
        counts = torch.bincount(pairs, minlength=self.confusion.numel())
        self.confusion += counts.view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """Numbers in [0, 1], float64.

        Returns:
            Scalars ``mIoU``, ``mAcc`` and ``aAcc``, and ``IoU`` and ``Acc`` of every class, shape
            ``(num_classes,)``. NaN where there are no pixels to divide by.
        """
        # float64 holds counts up to 2**53 exactly; it is not there on every device.
        confusion = self.confusion.cpu().double()
        hits = confusion.diagonal()
        labelled, predicted = confusion.sum(1), confusion.sum(0)[: self.num_classes]
        iou = hits / (labelled + predicted - hits)
        accuracy = hits / labelled
        return {
            "mIoU": iou.nanmean(),
            "mAcc": accuracy.nanmean(),
            "aAcc": hits.sum() / labelled.sum(),
            "IoU": iou,
            "Acc": accuracy,
        }


def class_table(names: Sequence[str], iou: Tensor, accuracy: Tensor) -> list[tuple[str, str, str]]:
    """Rows of class name, IoU and accuracy in percent, with ``-`` where a class does not occur."""
    rows = zip(names, iou.tolist(), accuracy.tolist(), strict=True)
    return [(name, _percent(i), _percent(a)) for name, i, a in rows]


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.2f}"  # NaN differs from itself
