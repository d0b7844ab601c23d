"""Limits of what is read from files, and the two ways to say no.

The numbers are far above what a checkpoint of three billion parameters with its optimizer state
needs, and low enough that reading anything takes seconds and little more memory than the file.
"""

from __future__ import annotations

MEBI = 2**20

PICKLE_BYTES = 64 * MEBI
"""Largest pickled part of a file. The values of tensors are not in it."""
PICKLE_STEPS = 1_000_000
"""Instructions that a pickle may have: about 25 for a tensor."""
NESTING = 100
"""Containers in containers."""
ITEMS = 2_000_000
"""Values in all containers, counted as often as they are referred to."""
INTEGER_BYTES = 32
"""Length of an integer; keys have 8."""
KEY_LENGTH = 16
"""Entries of a tuple that is a key of a dictionary."""
NAME_LENGTH = 512
"""Letters of the name of a tensor."""
DIMENSIONS = 16
"""Dimensions of a tensor."""
DIRECTORY_BYTES = 16 * MEBI
"""Table of contents of an archive."""
INFLATION, INFLATION_FREE = 10, 64 * MEBI
"""Compressed archives: size after unpacking as a multiple of the file, and what is always fine."""
OVERLAP, OVERLAP_FREE = 8, 64 * MEBI
"""Bytes of all tensors together as a multiple of the file, and what is always fine: tensors can
share their values."""
HEADER_BYTES = 8 * MEBI
"""Header of a safetensors file."""
COMPARISONS = 300_000
"""Pairs of pieces of a sharded tensor that are looked at to see that none overlap."""
JSON_BYTES = 8 * MEBI
"""Size of a json file."""


class Refusal(Exception):  # noqa: N818  it is no error of the program
    """The file is well formed, but holds what is not read; the text says what."""


class Damaged(Exception):  # noqa: N818
    """The file is not what it should be; the text says where."""


def shown(text: object, limit: int = 80) -> str:
    """Text of a file for a message: on one line, without control characters, of bounded length."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return plain if len(plain) <= limit else plain[:limit] + "..."
