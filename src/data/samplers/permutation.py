"""Random permutations that are computed instead of stored.

A keyed permutation of ``n`` numbers takes no memory, and any part of it can be computed alone. It
is a Feistel network on a rectangle of at least ``n`` cells (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). Only integer arithmetic is used, so that the result depends
neither on versions of NumPy nor on the machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_ROUNDS = 4
_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of the finaliser of SplitMix64


def key_of(*words: int) -> int:
    """A 64-bit key from integers of any size; each of them changes all bits."""
    key = 0
    for word in words:
        key = _mixed((key ^ (word & _MASK)) + _STEP)
    return key


def mixed(values: Words) -> Words:
    """Spread each 64-bit word over all its bits, as the finaliser of SplitMix64 does."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


def permuted(positions: Words, sizes: Words, keys: Words) -> Words:
    """Element at each position of a random permutation of ``range(size)``.

    Args:
        positions: Positions below their size, ``(N,)``.
        sizes: Number of elements of each permutation, ``(N,)``, below 2**32.
        keys: Selects each permutation, ``(N,)``.

    Returns:
        Elements ``(N,)``. Equal sizes and keys give different elements for different positions.
    """
    rows = np.ceil(np.sqrt(np.maximum(sizes, 1).astype(np.float64))).astype(np.uint64)
    columns: Words = np.maximum((sizes + rows - np.uint64(1)) // rows, np.uint64(1))
    found = _encrypted(positions, rows, columns, keys)
    # Cells beyond the size are followed until one is inside, which keeps the map one-to-one.
    outside = np.flatnonzero(found >= sizes)
    while len(outside):
        found[outside] = _encrypted(found[outside], rows[outside], columns[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside]]
    return found


def permutation(size: int, key: int) -> NDArray[np.int64]:
    """All elements of one permutation, ``(size,)``."""
    positions = np.arange(size, dtype=np.uint64)
    sizes, keys = np.full(size, size, np.uint64), np.full(size, key, np.uint64)
    return permuted(positions, sizes, keys).astype(np.int64)


def _encrypted(cells: Words, rows: Words, columns: Words, keys: Words) -> Words:
    right, left = np.divmod(cells, rows)
    for number in range(_ROUNDS):
        # 32 bits, so that the sums do not overflow.
        left = (left + (mixed(keys ^ right) >> np.uint64(32))) % rows
        keys = keys + np.uint64(2 * number + 1)
        right = (right + (mixed(keys ^ left) >> np.uint64(32))) % columns
        keys = keys * np.uint64(_STEP)
    return right * rows + left


def _mixed(value: int) -> int:
    value &= _MASK
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)
