"""Names of files and folders: which ones a user may give, and short ones for long ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from src.errors import UserError

_FORBIDDEN = '/\\:*?"<>|'
_LONGEST_NAME = 150  # bytes; leaves room for endings such as `-version_0.yaml`
_DIGITS = 12


def check_name(name: str, option: str) -> str:
    """Accept a name that makes exactly one folder, on any file system and in any shell.

    Args:
        name: The name.
        option: Where it was given, for the message.

    Returns:
        The name.

    Raises:
        UserError: If it is empty, too long, or has characters that lead elsewhere.
    """
    problem = _problem(name)
    if problem:
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise UserError(
            f"{option} accepts the name of one folder, such as internimage-t_run2; {shown!r}"
            f" {problem}."
        )
    return name


def _problem(name: str) -> str | None:
    found = [character for character in _FORBIDDEN if character in name]
    if not name.strip():
        return "is empty"
    if found:
        return f"contains {found[0]}"
    if not name.isprintable():
        return "contains control characters or bytes that are no text"
    if name != name.strip():
        return "starts or ends with a space"
    if name[0] in ".-~":
        return f"starts with {name[0]}"
    if name[-1] == ".":
        return "ends with a dot"
    length = len(name.encode())
    return f"is {length} bytes long, more than {_LONGEST_NAME}" if length > _LONGEST_NAME else None


def name_of(stems: Iterable[str], default: str) -> str:
    """Folder name made of the stems of files, which `check_name` accepts.

    Args:
        stems: Any names, joined by ``-``.
        default: Name if nothing is left of them.
    """
    joined = "-".join(stems)
    clean = "".join("_" if c in _FORBIDDEN or not c.isprintable() else c for c in joined)
    return shorten(clean.strip(" ").lstrip(".-~ ").rstrip(". "), _LONGEST_NAME) or default


def shorten(name: str, longest: int) -> str:
    """A name of at most ``longest`` bytes; a hash keeps shortened names apart."""
    if len(os.fsencode(name)) <= longest:
        return name
    end = f"-{digest(name)}"
    head = name[: longest - len(end)]
    while len(os.fsencode(head)) > longest - len(end):
        head = head[:-1]
    return head + end


def digest(text: str) -> str:
    """Twelve hexadecimal digits that stand for a text, the same on every machine."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:_DIGITS]
