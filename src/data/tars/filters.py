"""Which pairs of an index are used, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import UserError

Rows = NDArray[Any]
Bits = NDArray[np.bool_]

_HASHES_AT_ONCE = 2**26  # 512 MB


@dataclass(frozen=True)
class Filters:
    """Limits on pairs; 0 switches a limit off.

    Attributes:
        min_side: Smallest width and height of the image in pixels.
        max_aspect: Largest ratio of the longer to the shorter side.
        min_characters: Shortest text.
        max_characters: Longest text.
        min_score: Smallest score; pairs without a score are left out. None switches it off.
        unique: Whether only the first of the pairs with the same identity is used.

    Raises:
        UserError: If a limit is negative.
    """

    min_side: int = 0
    max_aspect: float = 0
    min_characters: int = 0
    max_characters: int = 0
    min_score: float | None = None
    unique: bool = False

    def __post_init__(self) -> None:
        """Check the limits."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "min_score" and not value >= 0:
                option = entry.name.replace("_", "-")
                raise UserError(f"--{option} accepts 0 (off) or a positive number, got {value!r}.")

    def apply(self, rows: Rows) -> tuple[Bits, dict[str, int]]:
        """Which rows are used, and how many each limit leaves out; the first limit counts."""
        kept = np.ones(len(rows), bool)
        counts: dict[str, int] = {}
        for name, fails in self._limits(rows):
            counts[name] = int((kept & fails).sum())
            kept &= ~fails
        return kept, {name: count for name, count in counts.items() if count}

    def _limits(self, rows: Rows) -> Iterator[tuple[str, Bits]]:
        short = np.minimum(rows["width"], rows["height"])
        long = np.maximum(rows["width"], rows["height"])
        if self.min_side or self.max_aspect:
            yield "image size unknown", short == 0
        if self.min_side:
            yield "image too small", short < self.min_side
        if self.max_aspect:
            yield "image too elongated", long > self.max_aspect * short.astype(np.float64)
        if self.min_characters:
            yield "text too short", rows["characters"] < self.min_characters
        if self.max_characters:
            yield "text too long", rows["characters"] > self.max_characters
        if self.min_score is not None:
            yield "no score", np.isnan(rows["score"])
            yield "score too low", rows["score"] < self.min_score


def repeated(parts: Callable[[], Iterator[tuple[Rows, Bits]]], total: int) -> Bits:
    """Which pairs have the identity of an earlier one, bool ``(total,)``.

    The hashes are compared in portions that fit into memory, with one pass over the parts for each.

    Args:
        parts: Rows of each tar in their order, and which of them are used; called for each pass.
        total: Number of rows in all.
    """
    marks = np.zeros(total, bool)
    portions = -(-total // _HASHES_AT_ONCE)
    for portion in range(portions):
        hashes, places = [], []
        start = 0
        for rows, kept in parts():
            identity = rows["identity"]
            chosen = np.flatnonzero(kept & (identity != 0) & (identity % portions == portion))
            hashes.append(identity[chosen])
            places.append(chosen + start)
            start += len(rows)
        if not hashes:
            continue
        identity, place = np.concatenate(hashes), np.concatenate(places)
        _, first = np.unique(identity, return_index=True)
        is_repeated = np.ones(len(identity), bool)
        is_repeated[first] = False
        marks[place[is_repeated]] = True
    return marks
