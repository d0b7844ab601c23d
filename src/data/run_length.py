"""Run-length codes of masks in COCO files, checked before pycocotools reads them.

A code lists, column by column, how many pixels in turn are outside and inside. pycocotools leaves
what a code does not reach uninitialised, and says of one that is too long neither file nor object.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS, _SIGN, _CONTINUES = 5, 0x10, 0x20


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
    if places.max() > 6:
        raise ValueError("the compressed text is damaged")
    runs: NDArray[np.int64] = np.add.reduceat((digits & 0x1F) << (_BITS * places), starts)
    runs -= np.where(digits[ends] & _SIGN, 1 << (_BITS * (places[ends] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
