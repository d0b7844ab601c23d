"""Suggestions of the closest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], *, option: bool = False) -> str:
    """A suggestion with the closest known name, with a leading space; empty if none is close.

    Args:
        name: A name, possibly with the names of its parents: ``trainer.max_epocs``.
        known: Names to choose from; their last components are compared, ignoring case.
        option: Whether the names are options.
    """
    found = closest(name, known)
    if found is None:
        return ""
    return f" Did you mean --{found}?" if option else f" Did you mean {found!r}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The closest known name as `suggest` compares them, or ``None`` if none is close."""
    last = name.split(".")[-1].lower()
    by_last = {option.split(".")[-1].lower(): option for option in known}
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    return by_last[close[0]] if close else None
