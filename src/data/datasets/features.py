"""Cached features of a frozen backbone instead of images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset


class FeatureSample(TypedDict):
    """Features of one image, ``(C, h, w)``, and its class index."""

    features: Tensor
    label: int


class FeatureDataset(Dataset[FeatureSample]):
    """Features of images with one label each.

    Args:
        labels: Class index of each image.

    Attributes:
        views: The features of each view of the images. A view has parts ``(n, C, h, w)``, which
            together have all images in their order. They are set after the loaders are made.
        view: Number of the view that is used, modulo the number of views.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels, self.view = labels, 0
        self.views: Sequence[Sequence[Tensor]] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> FeatureSample:
        """Features of one image in the current view."""
        parts = self.views[self.view % len(self.views)]
        ends = list(accumulate(len(part) for part in parts))
        number = bisect_right(ends, index)
        row = index - (ends[number - 1] if number else 0)
        return {"features": parts[number][row], "label": int(self.labels[index])}
