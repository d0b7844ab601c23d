"""Faults in the entries of annotation files, counted by kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from src.errors import UserError


class EntryError(UserError):
    """A fault of an entry of a file, such as an annotation or a line.

    Args:
        message: See `UserError`.
        kind: Plural that counts such faults: ``annotations with a wrong bbox``.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Faults:
    """Messages about entries, by kind.

    Args:
        other: Kind of the faults of errors that have none.
        prefix: Beginning of the messages, which is said once for all faults of a kind.
    """

    def __init__(self, other: str, prefix: str = "") -> None:
        self.by_kind: dict[str, list[str]] = {}
        self._other, self._prefix = other, prefix

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a `UserError` instead of raising it."""
        try:
            yield
        except UserError as error:
            kind = getattr(error, "kind", "") or self._other
            text = str(error).removeprefix(self._prefix)
            self.by_kind.setdefault(kind, []).append(text)

    def lines(self) -> list[str]:
        """One line per kind, with the number of entries and the first one."""
        return [
            f"{self._prefix}{found[0]}"
            if len(found) == 1
            else f"{self._prefix}{len(found)} {kind}; the first: {found[0]}"
            for kind, found in self.by_kind.items()
        ]
