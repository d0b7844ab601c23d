"""Limits for reading files, and the exceptions of the readers.

The limits are far above what a checkpoint with three billion parameters and its optimizer state
needs, and low enough that reading any file takes seconds and little more memory than its size.
"""

from __future__ import annotations

import reprlib
from typing import Any

MEBI = 2**20

PICKLE_BYTES = 64 * MEBI
"""Maximum size of a pickle in a file, which does not contain the values of tensors."""
PICKLE_STEPS = 1_000_000
"""Maximum number of instructions in a pickle; a tensor needs about 25."""
NESTING = 100
"""Maximum nesting depth of containers."""
ITEMS = 2_000_000
"""Maximum number of values in all containers, counted once per reference."""
COPIED_BYTES = 64 * MEBI
"""Maximum size of what the calls in a pickle copy; an item of a container counts as 64 bytes."""
TUPLE_KEYS = 1000
"""Maximum number of dictionary keys that are tuples, whose hashes a file can make equal."""
GLOBAL_LENGTH = 1024
"""Maximum length of the name of a class or function in a pickle."""
INTEGER_BYTES = 32
"""Maximum size of an integer; 8 for keys."""
KEY_LENGTH = 16
"""Maximum length of a tuple used as a dictionary key."""
NAME_LENGTH = 512
"""Maximum length of the name of a tensor."""
DIMENSIONS = 16
"""Maximum number of dimensions of a tensor."""
DIRECTORY_BYTES = 16 * MEBI
"""Maximum size of the central directory of an archive."""
INFLATION, INFLATION_FREE = 10, 64 * MEBI
"""Maximum uncompressed size as a multiple of the file size, and size that is always allowed."""
OVERLAP, OVERLAP_FREE = 8, 64 * MEBI
"""Maximum total size of all tensors (which can share storages) as a multiple of the file size, and
size that is always allowed."""
HEADER_BYTES = 8 * MEBI
"""Maximum size of the header of a safetensors file."""
COMPARISONS = 300_000
"""Maximum number of shard pairs of a tensor that are compared to detect overlaps."""
JSON_BYTES = 8 * MEBI
"""Maximum size of a JSON file."""


class Refusal(Exception):  # noqa: N818
    """The file is well-formed, but its content is not supported."""


class Damaged(Exception):  # noqa: N818
    """The file is damaged or has another format."""


def shown(text: object, limit: int = 80) -> str:
    """Text from a file for a message: one line, no control characters, limited length.

    Args:
        text: Text, or another value. Containers can be small and have an endless text, because
            their items may be references to the same value; only the first items are used.
        limit: Maximum number of characters.
    """
    is_container = isinstance(text, (list, tuple, dict, set))
    return _one_line(_BRIEF.repr(text) if is_container else str(text), limit)


def shown_repr(value: object, limit: int = 80) -> str:
    """Like `shown`, with quotes if the value is text."""
    return _one_line(_BRIEF.repr(value), limit)


def _one_line(text: str, limit: int) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return plain if len(plain) <= limit else plain[:limit] + "..."


class _Brief(reprlib.Repr):
    """`repr` with limits on the number of items, their length and their nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 20
        self.maxstring = self.maxlong = self.maxother = 1000
        self.maxlevel = 4

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_OrderedDict(self, value: dict[Any, Any], level: int) -> str:  # noqa: N802
        return self.repr_dict(value, level)

    repr_Counter = repr_OrderedDict  # noqa: N815


_BRIEF = _Brief()
