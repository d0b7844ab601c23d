"""Result of a check."""

from __future__ import annotations

from dataclasses import dataclass, field


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
