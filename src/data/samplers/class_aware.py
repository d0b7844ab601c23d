"""Sampling by class: `ClassAwareSampler`, and how often images of rare classes are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import Dataset

from src.data.samplers.distributed import DistributedBatchSampler
from src.errors import UserError


def repeat_factors(
    images_of_classes: Sequence[NDArray[np.int64]], number: int, threshold: float
) -> NDArray[np.int64]:
    """How often each image occurs in an epoch, so that rare classes are seen more often.

    A class in a part ``f`` of the images has the factor ``max(1, sqrt(threshold / f))``; an image
    has the largest factor of its classes, rounded up (Gupta et al., "LVIS", CVPR 2019, appendix;
    rounded up instead of at random as in ``ClassBalancedDataset`` of mmdetection).

    Args:
        images_of_classes: Indices of the images with each class.
        number: Number of images.
        threshold: Part of the images from which on a class is not repeated.

    Returns:
        ``(number,)``.
    """
    factors = np.ones(number)
    for images in images_of_classes:
        if len(images):
            factor = (threshold / (len(images) / number)) ** 0.5
            factors[images] = np.maximum(factors[images], factor)
    return np.ceil(factors).astype(np.int64)


class ClassAwareSampler(DistributedBatchSampler):
    """Like `DistributedBatchSampler`, with classes drawn equally often (Shen et al., ECCV 2016).

    Every class is drawn once in random order before any is drawn again, and so are the images of a
    class. An image has several classes, so it can occur for each of them.

    Args:
        dataset: The dataset.
        images_of_classes: Indices of the images with each class; classes without images are left
            out.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.
        seed: Determines the order, together with the epoch.

    Raises:
        UserError: If no class has an image.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        images_of_classes: Sequence[NDArray[np.int64]],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, num_replicas, rank, seed)
        self.classes = [torch.from_numpy(images) for images in images_of_classes if len(images)]
        if not self.classes:
            raise UserError("No training image has an annotation, so data.class_aware has nothing.")

    @property
    def left_out(self) -> int:
        """0, because an epoch repeats images of rare classes instead of others."""
        return 0

    def order(self, generator: Generator, total: int) -> Tensor:
        """Order of ``total`` indices; see `DistributedBatchSampler.order`."""
        drawn = _cycles(torch.arange(len(self.classes)), total, generator)
        chosen = torch.empty(total, dtype=torch.int64)
        for label, images in enumerate(self.classes):
            places = (drawn == label).nonzero().flatten()
            chosen[places] = _cycles(images, len(places), generator)
        return chosen


def _cycles(values: Tensor, count: int, generator: Generator) -> Tensor:
    """``count`` of the values: all in random order, again and again."""
    rounds = -(-count // len(values))
    orders = [torch.randperm(len(values), generator=generator) for _ in range(rounds)]
    return values[torch.cat(orders)[:count]] if orders else values[:0]
