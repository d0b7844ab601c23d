"""Validation, sanitising, shortening and quoting of file and folder names."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from src.errors import UserError

_FORBIDDEN = '/\\:*?"<>|'
_LONGEST_NAME = 150  # bytes; leaves room for suffixes such as `-version_0.yaml`
_DIGITS = 12
_SAFE = "%+,-./:=@_"  # in a shell, besides letters and digits of any alphabet
_YAML = (".yaml", ".yml")
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+:)/+")


def check_name(name: str, option: str) -> str:
    """Check that a name is a valid name of a single folder on any file system.

    Args:
        name: The name.
        option: Name of the option, for the message.

    Returns:
        The name.

    Raises:
        UserError: If it is empty, too long, or contains invalid characters.
    """
    problem = _problem(name)
    if problem:
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise UserError(
            f"{option}: expected the name of a single folder, such as internimage-t_run2, got"
            f" {shown!r}, which {problem}."
        )
    return name


def is_name(name: str) -> bool:
    """Whether `check_name` accepts a name."""
    return _problem(name) is None


def _problem(name: str) -> str | None:
    found = [character for character in _FORBIDDEN if character in name]
    if not name.strip():
        return "is empty"
    if found:
        return f"contains {found[0]}"
    if not name.isprintable():
        return "contains control characters or bytes that are not text"
    if name != name.strip():
        return "starts or ends with a space"
    if name[0] in ".-~":
        return f"starts with {name[0]}"
    if name[-1] == ".":
        return "ends with a dot"
    length = len(name.encode())
    return f"is {length} bytes long, more than {_LONGEST_NAME}" if length > _LONGEST_NAME else None


def url_of(source: str | Path) -> str | None:
    """The URL that was given in place of a file, else ``None``.

    Args:
        source: What was given; a `Path` keeps one slash of ``https://``.
    """
    found = _URL.match(str(source))
    if found is None or (isinstance(source, str) and "://" not in source):
        return None
    return f"{found[1]}//{str(source)[found.end() :]}"


def similar_file(path: str | Path) -> str:
    """A suggestion for a file that does not exist, with a leading space; empty if none is close.

    Args:
        path: The file; those of the same folder and kind are compared by name.
    """
    path = Path(path)
    kinds = _YAML if path.suffix in _YAML else (path.suffix,)
    known = sorted(other.name for other in path.parent.glob("*") if other.suffix in kinds)
    close = difflib.get_close_matches(path.name, known, n=1, cutoff=0.7)  # equal suffixes count
    return f" Did you mean {path.with_name(close[0])}?" if close else ""


def similar_folder(path: str | Path) -> Path | None:
    """A folder whose path is close to one that does not exist, or ``None``.

    Args:
        path: The folder; each of its missing parts is replaced by the closest name that is there.
    """
    path = Path(path)
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if part in ("..", ".") or (found / part).is_dir():
            found /= part
            continue
        there = sorted(other.name for other in found.glob("*") if other.is_dir())
        of_lower = {name.lower(): name for name in there}
        close = difflib.get_close_matches(part.lower(), of_lower, n=1, cutoff=0.7)
        if not close:
            return None
        found /= of_lower[close[0]]
    return found


def name_of(stems: Iterable[str], default: str) -> str:
    """Valid folder name built from file stems.

    Args:
        stems: Any names, joined by ``-``.
        default: Name if no valid characters are left.
    """
    joined = "-".join(stems)
    clean = "".join("_" if c in _FORBIDDEN or not c.isprintable() else c for c in joined)
    return shorten(clean.strip(" ").lstrip(".-~ ").rstrip(". "), _LONGEST_NAME) or default


def quoted(text: str | Path) -> str:
    """Text as one word of a shell command, in quotes only if a shell needs them.

    `shlex.quote` also quotes letters beyond ASCII, which every shell reads as they are.

    Args:
        text: A name, path or other argument of a command that is shown to the user.
    """
    text = str(text)
    # Letters, marks (an umlaut may be two characters) and numbers.
    is_plain = all(c in _SAFE or unicodedata.category(c)[0] in "LMN" for c in text)
    return text if text and is_plain else shlex.quote(text)


def shorten(name: str, longest: int) -> str:
    """Name of at most ``longest`` bytes; shortened names end with a hash to keep them unique."""
    if len(os.fsencode(name)) <= longest:
        return name
    end = f"-{digest(name)}"
    head = name[: longest - len(end)]
    while len(os.fsencode(head)) > longest - len(end):
        head = head[:-1]
    return head + end


def digest(text: str) -> str:
    """Hash of a text with twelve hexadecimal digits, the same on every machine."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:_DIGITS]
