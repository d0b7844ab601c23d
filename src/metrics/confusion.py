"""Confusion matrix of classified images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """Number of images by class and predicted class, over all ranks.

    ``MulticlassConfusionMatrix`` of torchmetrics needs ``N x K^2`` numbers with deterministic
    algorithms; this one only the matrix.

    Args:
        num_classes: Number of classes ``K``.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=empty, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the images of a batch.

        Args:
            prediction: Predicted classes in ``[0, K)``, int64, shape ``(N,)``.
            label: True classes, likewise.
        """
        pairs = label * len(self.counts) + prediction
        counts = torch.bincount(pairs, minlength=self.counts.numel())
        self.counts += counts.view_as(self.counts)

    def compute(self) -> Tensor:
        """The counts, int64, classes by predicted classes, shape ``(K, K)``."""
        return self.counts
