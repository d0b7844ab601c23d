"""Padding samples that equalise the number of batches per rank; excluded from metrics and outputs.

They replace the missing batch of a rank that has one less than others, and unreadable images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class CountedCollate:
    """Collate the samples that are not padding.

    If all are padding, the batch has one of them and the entry ``is_padding``: the task runs the
    network on it, because other ranks may wait in the forward pass, and drops the output. This is
    a class and not a method of the data module, so that workers that are not forked receive neither
    the data module nor the network.

    Args:
        collate: Makes a batch of samples.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Batch of the samples that are not marked ``is_padding``."""
        counted = [sample for sample in samples if not sample.get("is_padding")]
        chosen = counted or list(samples[:1])
        batch = self.collate([without_mark(sample) for sample in chosen])
        return batch if counted else {**batch, "is_padding": True}


def without_mark(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample without its mark."""
    return {key: value for key, value in sample.items() if key != "is_padding"}
