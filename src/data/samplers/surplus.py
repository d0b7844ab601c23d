"""Samples that only keep a rank in step with the others: they are computed, and count nowhere.

They come from ranks that have one batch less than others, and from images that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class CountedCollate:
    """Make a batch of the samples that count.

    A batch in which none counts has one sample and the entry ``surplus``: whoever gets it runs the
    network, which other ranks may wait for, and drops the output. An object of a module-level class
    instead of a bound method, so that loader processes that are not forked can receive it without
    receiving the data module and the network too.

    Args:
        collate: Makes a batch of samples.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Batch of the samples without the mark ``surplus``."""
        counted = [sample for sample in samples if not sample.get("surplus")]
        chosen = counted or list(samples[:1])
        batch = self.collate([without_mark(sample) for sample in chosen])
        return batch if counted else {**batch, "surplus": True}


def without_mark(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample without its mark."""
    return {key: value for key, value in sample.items() if key != "surplus"}
