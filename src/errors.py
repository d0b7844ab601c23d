"""The error that the person at the keyboard caused and can fix.

The command line prints a `UserError` as one sentence without a traceback. Programming mistakes stay
ordinary exceptions.
"""

from __future__ import annotations

import re


class UserError(ValueError):
    """The user gave something wrong: a path, a file, a value.

    The message is one or two complete sentences: what was wrong, which file or value, what is
    accepted, how to fix it.

    A loader worker can only hand its parent the text of a traceback: PyTorch raises the same class
    again with that text as its message. The constructor takes the sentence back out, so that the
    user reads the same words whether the images are read in the main process or in a worker.

    Args:
        message: The sentence, or PyTorch's account of a `UserError` in a worker.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_sentence(message, type(self).__name__))


def _sentence(message: str, name: str) -> str:
    """Cut ``<module>.<name>: sentence`` out of a worker's traceback; return other text as it is."""
    if not message.startswith(f"Caught {name} in "):
        return message
    starts = list(re.finditer(rf"^(?:[\w.]+\.)?{name}: ", message, flags=re.MULTILINE))
    return message[starts[-1].end() :].strip() if starts else message


def printable(text: str) -> str:
    """Text for a terminal: control characters, which file names may hold, are written as escapes.

    Args:
        text: Any text; its line breaks stay.
    """
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )
