"""Batches of images that are all wide or all high, which reduces padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler


class AspectRatioSampler(DistributedSampler[int]):
    """Shuffled indices in which every batch has one orientation.

    As in mmdetection 2.x, each group is shuffled and padded with repetitions to whole batches on
    all ranks; then the batches are shuffled.

    Args:
        dataset: The dataset.
        is_wide: Group of each image, bool ``(N,)``.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.
        seed: Determines the order, together with the epoch.
        repeats: How often each image occurs in an epoch, ``(N,)``; default is once.
    """

    def __init__(
        self,
        dataset: Dataset[int],
        is_wide: NDArray[np.bool_],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        repeats: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)
        groups = [np.flatnonzero(is_wide), np.flatnonzero(~is_wide)]
        if repeats is not None:
            groups = [np.repeat(group, repeats[group]) for group in groups]
        self.groups = [torch.from_numpy(group) for group in groups if len(group)]
        self.batch_size = batch_size

    @property
    def is_mixed(self) -> bool:
        """Whether there are wide and high images, so that both groups are padded."""
        return len(self.groups) > 1

    @property
    def repeated(self) -> int:
        """Number of images that pad the groups in an epoch, on all ranks."""
        return len(self) * self.num_replicas - sum(map(len, self.groups))

    def __len__(self) -> int:
        """Number of indices of a rank in an epoch."""
        whole = self.batch_size * self.num_replicas
        return sum(-(-len(group) // whole) for group in self.groups) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank; every ``batch_size`` of them are one batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        whole = self.batch_size * self.num_replicas
        batches = []
        for group in self.groups:
            order = group[torch.randperm(len(group), generator=generator)]
            full = -(-len(order) // whole) * whole
            order = order.repeat(-(-full // len(order)))[:full]
            batches.append(order.view(-1, self.batch_size))
        together = torch.cat(batches)
        together = together[torch.randperm(len(together), generator=generator)]
        return iter(together[self.rank :: self.num_replicas].flatten().tolist())
