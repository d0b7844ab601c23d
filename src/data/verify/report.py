"""Result of a check."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """What a check of a folder has found, one sentence each.

    Attributes:
        facts: What is there.
        notes: What may be meant, such as a split that lacks a class.
        problems: What the data module would refuse; empty if all is well.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
