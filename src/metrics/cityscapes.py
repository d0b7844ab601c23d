"""Metrics of the Cityscapes benchmark: mIoU and the IoU of instances.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
and the evaluation of the Cityscapes scripts (mcordts/cityscapesScripts, MIT). A small instance
counts as much as a large one: its pixels have the weight ``average size of the class / size of the
instance``. Predictions are not assigned to instances, so false positives have no weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.metrics.segmentation import SegmentationMetric
from src.types import IGNORE_LABEL


class CityscapesMetric(SegmentationMetric):
    """`SegmentationMetric`, and the instance-level scores of classes with instances.

    It needs the weights of pixels that ``CityscapesDataModule(instances=True)`` reads.

    Args:
        num_classes: Number of classes.
    """

    hits: Tensor
    total: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        for name in ("hits", "total"):  # weighted pixels by class
            self.add_state(name, torch.zeros(num_classes), "sum")

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scalars that `compute` returns."""
        return (*super().score_names, "iIoU")

    def update(self, prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Count the pixels of an image; see `SegmentationMetric.update`.

        Args:
            prediction: Predicted classes.
            label: True classes of the same shape.
            weight: Weight of each pixel, of the same shape; 0 outside of instances.
        """
        super().update(prediction, label)
        if weight is None:
            return
        inside = (weight > 0) & (label != IGNORE_LABEL)
        weight, label = weight[inside], label[inside]
        right = prediction[inside] == label
        for number in label.unique().tolist():  # sums are deterministic, weighted bins are not
            chosen = label == number
            self.total[number] += weight[chosen].sum()
            self.hits[number] += weight[chosen & right].sum()

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores, float64 in [0, 1].

        Returns:
            Scores of `SegmentationMetric`, and ``iIoU``, the mean over classes with instances.
        """
        confusion, hits, total = (x.cpu().double() for x in (self.confusion, self.hits, self.total))
        false = confusion.sum(0)[: self.num_classes] - confusion.diagonal()
        iiou = hits / (total + false)
        return super().compute() | {"iIoU": iiou[total > 0].mean()}
