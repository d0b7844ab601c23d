"""Sharing pictures among processes: in training by whole batches, in evaluation each one once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler


class CountOnceSampler(DistributedSampler[Any]):
    """Gives every process the same number of pictures; the surplus is marked.

    PyTorch's sampler repeats pictures where they do not divide evenly, and a metric counts them
    twice. Here the surplus has indices of ``len(dataset)`` and more: the data set returns pictures
    for them (so that no process waits for another), but without anything to count.

    Args:
        dataset: Data set that understands such indices.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        """Indices of this process: every ``num_replicas``-th, from its own number on."""
        return iter(range(self.rank, self.total_size, self.num_replicas))


class DealtBatchSampler(DistributedSampler[Any]):
    """Shuffled indices, dealt to the processes batch by batch.

    The order depends on the seed and the epoch alone, and the batches of one step are consecutive
    in it. So a step sees the same pictures on one process, on many, and with accumulated batches,
    as long as the global batch is the same; and a run continues on another number of processes as
    if nothing had changed. What does not fill a step is left out; a data set that does not fill a
    single step is one step of smaller batches, filled up with repetitions.

    Args:
        dataset: The data set.
        batch_size: Pictures per process and step.
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
