"""Run-length codes of masks in COCO files, checked before pycocotools reads them.

A code lists, column by column, how many pixels in turn are outside and inside. pycocotools leaves
what a code does not reach uninitialised, and says of one that is too long neither file nor object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS, _SIGN, _CONTINUES = 5, 0x10, 0x20
_MOST_PLACES = 6  # groups of bits of a number after the first one


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
    """Groups of five bits, low ones first; from the fourth number on, less the last but one."""
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & _CONTINUES == 0)
    if not len(ends) or ends[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() >= 64:
        raise ValueError("the compressed text is damaged")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if places.max() > _MOST_PLACES:
        raise ValueError("the compressed text is damaged")
    runs: NDArray[np.int64] = np.add.reduceat((digits & 0x1F) << (_BITS * places), starts)
    runs -= np.where(digits[ends] & _SIGN, 1 << (_BITS * (places[ends] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def fill_exactly(texts: Sequence[str], pixels: NDArray[np.int64]) -> bool:
    """Whether compressed texts are intact and each one has as many pixels as its image.

    The same as looking at each with `run_lengths`, in a fraction of the time.

    Args:
        texts: Compressed run-length codes.
        pixels: Pixels of the image of each, ``(N,)``.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    try:
        digits = np.frombuffer("".join(texts).encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return False
    if not len(texts) or lengths.min() < 1 or digits.min() < 0 or digits.max() >= 64:
        return False
    is_end = digits & _CONTINUES == 0
    text_ends = np.cumsum(lengths)
    if not is_end[text_ends - 1].all():
        return False
    ends = np.flatnonzero(is_end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > _MOST_PLACES:
        return False
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((digits & 0x1F) << (_BITS * places), starts)
    runs -= np.where(digits[ends] & _SIGN, 1 << (_BITS * (places[ends] + 1)), 0)
    owner = np.repeat(np.arange(len(texts)), lengths)[ends]  # the text of each run
    firsts = np.searchsorted(owner, np.arange(len(texts)))
    place = np.arange(len(runs)) - firsts[owner]  # of a run in its text
    for which in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        sums, owners = np.cumsum(runs[which]), owner[which]
        if len(sums):
            begins = np.searchsorted(owners, owners)
            runs[which] = sums - np.concatenate([[0], sums])[begins]
    in_range = (runs >= 0) & (runs <= pixels[owner])
    return bool(in_range.all() and (np.add.reduceat(runs, firsts) == pixels).all())
