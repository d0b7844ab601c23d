"""Run-length codes of masks in COCO files, checked before pycocotools reads them.

A code counts, column by column, the pixels that are outside and inside in turn. Pixels that a code
does not reach are left uninitialised by pycocotools, and its error for a code that is too long
names neither the file nor the annotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS, _SIGN, _CONTINUES = 5, 0x10, 0x20
_MOST_DIGITS = 7  # of a number; a digit holds five bits
_DAMAGED = "the compressed text is damaged"


def run_lengths(counts: Any) -> NDArray[np.int64]:
    """Numbers of pixels, from a list or from COCO's compressed text.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(counts, str):
        return _from_text(counts)
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ValueError("counts are neither whole numbers nor compressed text")
    return runs.astype(np.int64)


def _from_text(text: str) -> NDArray[np.int64]:
    runs, ends = _numbers(text)
    if ends[-1] != len(text) - 1:
        raise ValueError(_DAMAGED)
    # From the fourth number on, a number is the difference to the last but one.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _numbers(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers in compressed text, and the index of the last digit of each.

    Raises:
        ValueError: If a character is not a digit, or a number is too long.
    """
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & _CONTINUES == 0)
    if not len(ends) or digits.min() < 0 or digits.max() >= 64:
        raise ValueError(_DAMAGED)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MOST_DIGITS:
        raise ValueError(_DAMAGED)
    starts = ends + 1 - lengths
    digits = digits[: ends[-1] + 1]  # what follows is no whole number
    shifts = _BITS * (np.arange(len(digits)) - np.repeat(starts, lengths))  # low bits come first
    values: NDArray[np.int64] = np.add.reduceat((digits & 0x1F) << shifts, starts)
    values -= np.where(digits[ends] & _SIGN, 1 << (_BITS * lengths), 0)
    return values, ends


def fill_exactly(texts: Sequence[str], pixels: NDArray[np.int64]) -> bool:
    """Whether compressed texts are intact and each one has as many pixels as its image.

    The same as looking at each with `run_lengths`, in a fraction of the time.

    Args:
        texts: Compressed run-length codes.
        pixels: Pixels of the image of each, ``(N,)``.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if not len(texts) or lengths.min() < 1:
        return False
    try:
        runs, ends = _numbers("".join(texts))
    except ValueError:
        return False
    last_digits = np.cumsum(lengths) - 1
    if (
        ends[-1] != last_digits[-1]
        or (ends[np.searchsorted(ends, last_digits)] != last_digits).any()
    ):
        return False
    owner = np.repeat(np.arange(len(texts)), lengths)[ends]  # the text of each run
    firsts = np.searchsorted(owner, np.arange(len(texts)))
    index = np.arange(len(runs)) - firsts[owner]  # of a run in its text
    for which in (index % 2 == 1, (index % 2 == 0) & (index > 0)):
        sums, owners = np.cumsum(runs[which]), owner[which]
        if len(sums):
            begins = np.searchsorted(owners, owners)
            runs[which] = sums - np.concatenate([[0], sums])[begins]
    in_range = (runs >= 0) & (runs <= pixels[owner])
    return bool(in_range.all() and (np.add.reduceat(runs, firsts) == pixels).all())
