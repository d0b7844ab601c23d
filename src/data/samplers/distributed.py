"""Sharing images among ranks by whole batches; in evaluation each one counts once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler


class CountOnceSampler(DistributedSampler[Any]):
    """Deals whole batches to the ranks, so that every image is in one batch of one rank.

    The batches are those of a single rank, so metrics do not depend on the number of ranks. Every
    rank gets the same number of batches, because networks in shards and what gathers results need
    all ranks at once: where they do not divide evenly, a rank gets the index ``len(dataset)``, for
    which the dataset returns a sample without anything to count (``surplus.py``). PyTorch's sampler
    would repeat images there, and a metric would count them twice.

    Args:
        dataset: Dataset that understands such an index.
        batch_size: Images per rank and step.
        num_replicas: Number of ranks.
        rank: Number of this rank.
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


class DealtBatchSampler(DistributedSampler[Any]):
    """Shuffled indices, dealt to the processes batch by batch.

    The order depends on the seed and the epoch alone, and the batches of one step are consecutive
    in it. So a step sees the same images on one process, on many, and with accumulated batches,
    as long as the global batch is the same; and a run continues on another number of processes as
    if nothing had changed. What does not fill a step is left out; a dataset that does not fill a
    single step is one step of smaller batches, filled up with repetitions.

    Args:
        dataset: The dataset.
        batch_size: Images per process and step.
        num_replicas: Number of processes.
        rank: Number of this process.
        seed: Decides the order together with the epoch.
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

    def __len__(self) -> int:
        """Number of indices of one process in an epoch."""
        return self.num_steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Indices of this process; every ``batch_size`` of them are one batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        total = len(self) * self.num_replicas
        order = order.repeat(-(-total // len(order)))[:total]
        dealt = order.view(self.num_steps, self.num_replicas, self.batch_size)
        return iter(dealt[:, self.rank].flatten().tolist())
