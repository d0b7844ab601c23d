"""Interface between a network and the loader of released weights.

A module may define two things, and needs to import neither:

- ``official_renames``: pairs of a pattern on its own parameter names and the official spelling
  (``names.py`` reads them);
- ``adapt_checkpoint(prefix, match)``: change tensors that mean the same in another shape, before
  they are compared with the module (``fit.py`` calls it).

A backbone with released weights derives from `PretrainedBackbone`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

Renames = tuple[tuple[str, str], ...]
"""Patterns on the names of a module and the official spelling; the first match counts."""


@dataclass
class Match:
    """Tensors of a file that fit a network.

    Attributes:
        source: Name of the file for messages.
        state: Part of a state dict of the network, in the shapes of the network.
        remap_22k: Use rows of a 21841-class head for 1000 classes.
        fresh: Names of the network that keep their initial values.
        unused: Names of the file that the network does not have.
        notes: Sentences for the user, each once.
        given: Names of the network that the file has.
    """

    source: str
    state: dict[str, Tensor]
    remap_22k: bool = True
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.given = frozenset(self.state)

    def note(self, sentence: str) -> None:
        """Add a message for the user unless it is already there."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def keep_initial(self, values: Mapping[str, Tensor]) -> None:
        """Keep the network's own values instead of those of the file."""
        self.state |= values
        self.fresh += values


class PretrainedBackbone(nn.Module):
    """Base of backbones whose released weights this project reads.

    Attributes:
        checkpoint_anchor: Name of a weight that every released file has; what precedes it in a
            file is the prefix of the backbone.
        checkpoint_parts: Prefixes of what must load completely.
    """

    checkpoint_anchor: ClassVar[str]
    checkpoint_parts: ClassVar[tuple[str, ...]]

    @classmethod
    def describe_checkpoint(
        cls, tensors: Mapping[str, Tensor], prefix: str
    ) -> tuple[str | None, str]:
        """Variant that the tensors under ``prefix`` look like, or ``None``, and its description."""
        raise TypeError(f"{cls.__name__} must define describe_checkpoint()")

    @classmethod
    def explain_mismatch(cls, missing: list[str], unused: list[str]) -> str:
        """Advice for the user if a file of the right variant does not fit."""
        raise TypeError(f"{cls.__name__} must define explain_mismatch()")


def shorten(names: Iterable[str], limit: int = 4) -> str:
    """The first names of a list and the number of the others."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) or "none") + more
