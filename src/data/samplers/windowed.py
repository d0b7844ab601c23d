"""Order of samples that are stored in thousands of tars, computed from (seed, epoch, position).

Nothing is stored per sample, and any range of an epoch can be computed alone:

1. Every source gives its share of an epoch; the sources alternate in a fixed, even pattern.
2. A source passes through all its samples before it repeats one. In each pass, its tars are
   permuted and cut into windows.
3. Within a window, the tars alternate in the same kind of pattern, and the samples of each tar are
   permuted.

A range of positions is therefore one range of the permuted samples of each tar of a window. Within
a step, samples are listed tar by tar, and each rank takes a consecutive part: it reads only its own
tars of the window, about ``window / ranks``, until the next window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from src.data.samplers.permutation import key_of, mixed, permutation, permuted
from src.errors import UserError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class SourceOrder:
    """What the order needs to know of a source.

    Attributes:
        sizes: Number of samples of each tar, ``(T,)``.
        weight: How often each sample is used in an epoch, on average; 0.5 uses one half in one
            epoch and the other half in the next.
    """

    sizes: Integers
    weight: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """Samples in the order of training.

    Attributes:
        ids: Number of each sample, counted over all sources, int64 ``(N,)``.
        seeds: Random number of each for its augmentation, uint64 ``(N,)``. It is different each
            time the sample is used.
    """

    ids: Integers
    seeds: NDArray[np.uint64]


def shares(position: int, sizes: Sequence[int]) -> list[int]:
    """How many of the first elements of an even mixture come from each part.

    Args:
        position: Number of first elements, up to the sum of the sizes.
        sizes: Elements of each part.

    Returns:
        Counts that sum to ``position``. None of them falls when ``position`` grows, and each is
        close to its proportion.
    """
    rest, counts = sum(sizes), []
    for size in sizes:
        count = position * size // rest if rest else 0
        counts.append(count)
        position -= count
        rest -= size
    return counts


class WindowedOrder:
    """Order of the samples of all sources.

    Args:
        sources: At least one.
        seed: Determines the order.
        window: Tars of a source that are mixed with each other.

    Raises:
        UserError: If a weight gives no sample.
    """

    def __init__(self, sources: Sequence[SourceOrder], seed: int, window: int) -> None:
        self.seed, self.window = seed, window
        self.totals = [int(source.sizes.sum()) for source in sources]
        self.lengths = [
            round(source.weight * total) for source, total in zip(sources, self.totals, strict=True)
        ]
        for number, length in enumerate(self.lengths):
            if length < 1:
                raise UserError(
                    f"data.sources: source {number} with {self.totals[number]} samples and the "
                    f"weight {sources[number].weight:g} gives no sample in an epoch; raise its "
                    "weight or remove it."
                )
        self._sizes = [source.sizes.astype(np.int64) for source in sources]
        self._starts = [np.cumsum(sizes) - sizes for sizes in self._sizes]
        self._first = np.cumsum([0, *self.totals])
        self._pass = lru_cache(2 * len(sources))(self._new_pass)  # a step may touch two
        self._window = lru_cache(2 * len(sources))(self._new_window)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return sum(self.lengths)

    def draw(self, epoch: int, start: int, stop: int, part: int = 0, parts: int = 1) -> Drawn:
        """Samples of a range of an epoch, tar by tar.

        Args:
            epoch: Number of the epoch.
            start: First position.
            stop: Position after the last one, at most the length of an epoch.
            part: Which of the parts of the range.
            parts: Number of parts of (nearly) equal size into which it is divided.
        """
        pieces = list(self._pieces(epoch, start, stop))
        first, size, key, lower, upper = (
            np.concatenate([piece[column] for piece in pieces]) for column in range(5)
        )
        ends = np.cumsum(upper - lower)
        starts = ends - (upper - lower)
        count = stop - start
        begin, end = count * part // parts, count * (part + 1) // parts
        upper = lower + np.clip(end - starts, 0, upper - lower)
        lower = lower + np.clip(begin - starts, 0, ends - starts)
        number = np.maximum(upper - lower, 0)
        tar = np.repeat(np.arange(len(number)), number)
        within = np.arange(len(tar)) - np.repeat(np.cumsum(number) - number, number) + lower[tar]
        keys = key[tar]
        index = permuted(within.astype(np.uint64), size[tar].astype(np.uint64), keys)
        return Drawn(first[tar] + index.astype(np.int64), mixed(keys + index))

    def _pieces(self, epoch: int, start: int, stop: int) -> Iterator[tuple[NDArray[Any], ...]]:
        """Ranges of permuted samples: first id, size and key of the tar, lower and upper bound."""
        before, after = shares(start, self.lengths), shares(stop, self.lengths)
        for source, (length, total) in enumerate(zip(self.lengths, self.totals, strict=True)):
            position, end = epoch * length + before[source], epoch * length + after[source]
            while position < end:
                number, within = divmod(position, total)
                bounds = self._pass(source, number)[2]
                window = int(np.searchsorted(bounds, within, side="right")) - 1
                upper = min(within + end - position, int(bounds[window + 1]))
                columns = self._window(source, number, window)
                sizes = columns[3]
                base = int(bounds[window])
                lows = np.array(shares(within - base, sizes), np.int64)
                highs = np.array(shares(upper - base, sizes), np.int64)
                used = np.flatnonzero(highs > lows)
                yield (*(column[used] for column in columns[:3]), lows[used], highs[used])
                position += upper - within

    def _new_pass(self, source: int, number: int) -> tuple[Integers, Integers, Integers]:
        """Permuted tars, where their windows begin, and the samples before each window."""
        sizes = self._sizes[source]
        tars = permutation(len(sizes), key_of(self.seed, source, number, 0))
        windows = -(-len(tars) // self.window)
        boundaries = np.arange(windows + 1) * len(tars) // windows  # of nearly equal size
        before = np.concatenate([[0], np.cumsum(sizes[tars])])
        return tars, boundaries, before[boundaries]

    def _new_window(
        self, source: int, number: int, window: int
    ) -> tuple[Integers, Integers, NDArray[np.uint64], list[int]]:
        """First id, size and key of each tar of a window, and the sizes again as a list."""
        tars, boundaries, _ = self._pass(source, number)
        chosen = tars[boundaries[window] : boundaries[window + 1]]
        sizes = self._sizes[source][chosen]
        base = np.uint64(key_of(self.seed, source, number, 1))
        keys = mixed(base ^ mixed(chosen.astype(np.uint64)))
        return self._starts[source][chosen] + self._first[source], sizes, keys, sizes.tolist()


class WindowedSampler(DistributedSampler[Any]):
    """Samples of a rank in the order of `WindowedOrder`, as pairs of id and seed.

    The samples of a step depend only on the seed and the epoch, for any number of ranks with the
    same global batch size. The last incomplete step is dropped. Nothing is drawn for steps that are
    skipped when a run is resumed.

    Args:
        dataset: The dataset.
        order: Order of its samples.
        batch_size: Samples per rank and step.
        num_replicas: Number of ranks.
        rank: Index of this rank.

    Raises:
        UserError: If an epoch has fewer samples than a step.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        order: WindowedOrder,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=order.seed)
        self.order, self.batch_size = order, batch_size
        self.step_size = batch_size * num_replicas
        self.num_steps = len(order) // self.step_size
        if not self.num_steps:
            raise UserError(
                f"An epoch has {len(order)} samples, fewer than one step of {self.step_size} "
                f"({num_replicas} x data.batch_size {batch_size}). Lower data.batch_size."
            )
        self._first_step = 0

    def __len__(self) -> int:
        """Number of samples of a rank in an epoch."""
        return self.num_steps * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch. Lightning repeats this after `skip_steps`, with the same epoch."""
        if epoch != self.epoch:
            self._first_step = 0
        super().set_epoch(epoch)

    def skip_steps(self, number: int) -> None:
        """Begin the current epoch after its first steps, which were used before."""
        self._first_step = number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Id and seed of each sample; every ``batch_size`` of them are one batch."""
        for step in range(self._first_step, self.num_steps):
            start = step * self.step_size
            stop = start + self.step_size
            drawn = self.order.draw(self.epoch, start, stop, self.rank, self.num_replicas)
            yield from zip(drawn.ids.tolist(), drawn.seeds.tolist(), strict=True)
