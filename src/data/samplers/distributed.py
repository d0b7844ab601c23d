"""Distribute whole batches over ranks; in evaluation every image counts exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, DistributedSampler


class CountOnceSampler(DistributedSampler[Any]):
    """Distributes whole batches over the ranks, so that every image is in one batch of one rank.

    The batches are the same as on a single rank, so metrics do not depend on the number of ranks.
    Every rank gets the same number of batches, because sharded networks and the gathering of
    results need all ranks at the same time. If the batches do not divide evenly, a rank gets the
    index ``len(dataset)``, for which the dataset returns a sample that metrics leave out
    (``padding.py``). PyTorch's sampler would repeat images instead, and metrics would count them
    twice.

    Args:
        dataset: Dataset that accepts such an index.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, num_replicas: int, rank: int
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        length = len(dataset)  # type: ignore[arg-type]
        total = -(-length // (batch_size * num_replicas)) * num_replicas
        self._indices: list[int] = []
        for start in range(rank * batch_size, total * batch_size, num_replicas * batch_size):
            self._indices += range(start, min(start + batch_size, length)) or [length]

    def __len__(self) -> int:
        """Number of indices of this rank."""
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank; every ``batch_size`` of them are one batch."""
        return iter(self._indices)


class DistributedBatchSampler(DistributedSampler[Any]):
    """Shuffled indices, distributed over the ranks batch by batch.

    The order depends only on the seed and the epoch, and the batches of a step are consecutive in
    it. A step therefore sees the same images on one rank, on many ranks, and with accumulated
    gradients, as long as the global batch size is the same, and a run can be resumed on another
    number of ranks. The last incomplete step is dropped. A dataset smaller than one step gives one
    step of smaller batches, padded with repetitions.

    Args:
        dataset: The dataset.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.
        seed: Determines the order, together with the epoch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)
        length = len(dataset)  # type: ignore[arg-type]
        self.batch_size = min(batch_size, -(-length // num_replicas))
        self.num_steps = max(1, length // (self.batch_size * num_replicas))

    @property
    def left_out(self) -> int:
        """Number of images that an epoch does not use; they differ from epoch to epoch."""
        length = len(self.dataset)  # type: ignore[arg-type]
        return max(0, length - len(self) * self.num_replicas)

    def __len__(self) -> int:
        """Number of indices of a rank in an epoch."""
        return self.num_steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank; every ``batch_size`` of them are one batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = self.order(generator, len(self) * self.num_replicas)
        batches = order.view(self.num_steps, self.num_replicas, self.batch_size)
        return iter(batches[:, self.rank].flatten().tolist())

    def order(self, generator: Generator, total: int) -> Tensor:
        """Random order of ``total`` indices: all of the dataset, repeated if it is smaller."""
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        return order.repeat(-(-total // len(order)))[:total]
