"""Sharing evaluation pictures among processes so that every picture counts once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
