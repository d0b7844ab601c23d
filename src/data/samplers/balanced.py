"""Sampler that draws all classes equally often."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import Dataset

from src.data.samplers.distributed import DistributedBatchSampler


class BalancedBatchSampler(DistributedBatchSampler):
    """Like `DistributedBatchSampler`, with the same number of images of every class.

    An epoch has as many images as the dataset. Images of rare classes occur several times, and each
    of them equally often up to one; of frequent classes, every epoch uses another random part.

    Args:
        dataset: The dataset.
        labels: Class of each image, ``(N,)``.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.
        seed: Determines the order, together with the epoch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        labels: NDArray[np.int64],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, num_replicas, rank, seed)
        self.classes = [torch.from_numpy(np.flatnonzero(labels == c)) for c in np.unique(labels)]

    @property
    def left_out(self) -> int:
        """0, because an epoch repeats images of rare classes instead of others."""
        return 0

    def order(self, generator: Generator, total: int) -> Tensor:
        """Random order of ``total`` indices, with all classes equally often up to one image."""
        share = -(-total // len(self.classes))
        # A random subset of the classes has one image less.
        classes = torch.randperm(len(self.classes), generator=generator).tolist()
        chosen = torch.stack(
            [_shuffled(self.classes[c], share, generator) for c in classes], dim=1
        ).flatten()[:total]
        return chosen[torch.randperm(total, generator=generator)]


def _shuffled(indices: Tensor, count: int, generator: Generator) -> Tensor:
    """``count`` of the indices in random order, each again only after all others."""
    rounds = -(-count // len(indices))
    orders = [torch.randperm(len(indices), generator=generator) for _ in range(rounds)]
    return indices[torch.cat(orders)[:count]]
