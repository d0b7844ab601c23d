"""Errors caused by invalid input.

The command line prints a `UserError` as a one-line message without a traceback. Bugs raise ordinary
exceptions.
"""

from __future__ import annotations

import re

MALFORMED_CONTENT = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What can be raised while values are taken from a json file whose content is not known."""


class UserError(ValueError):
    """Invalid input: a path, a file or a value.

    The message is one or two complete sentences: what is wrong, which file or value, what is
    expected, how to fix it.

    If a data loader worker raises this error, PyTorch raises it again in the main process with the
    traceback of the worker as its message. The constructor extracts the original message, so that
    it is the same with and without workers.

    Args:
        message: The message, or the traceback that PyTorch passes on from a worker.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_original_message(message, type(self).__name__))


def _original_message(message: str, name: str) -> str:
    """Extract the message from a worker's traceback; return any other text unchanged."""
    if not message.startswith(f"Caught {name} in "):
        return message
    matches = list(re.finditer(rf"^(?:[\w.]+\.)?{name}: ", message, flags=re.MULTILINE))
    return message[matches[-1].end() :].strip() if matches else message


def told_apart(value: float, limit: float) -> str:
    """A number with as many digits, from two on, as show on which side of a limit it is."""
    digits = next((n for n in range(2, 7) if round(value, n) != round(limit, n)), 2)
    return f"{value:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """A number and a noun, which gets an s unless the number is 1: ``1 image``, ``2 images``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def agreed(number: int, one: str, several: str) -> str:
    """The form of a verb that goes with a number: ``agreed(1, "is", "are")`` is ``is``."""
    return one if number == 1 else several


def printable(text: str) -> str:
    """Text for a terminal, with control characters (for example of file names) escaped.

    Args:
        text: Any text; line breaks are kept.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
