"""A layout that can be checked, and the result of a check."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Report:
    """Result of checking a folder, as sentences.

    Attributes:
        facts: Contents of the folder.
        notes: Oddities that may be intended, such as a class missing from a split.
        problems: Errors that the data module would raise; empty if there are none.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Layout(Protocol):
    """A module or object that checks one layout of a dataset."""

    @property
    def TREE(self) -> str:  # noqa: N802  a constant of modules
        """The files, for the help text."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare the arguments of the command."""

    def run(self, args: argparse.Namespace, /) -> Report:
        """Check a folder."""
