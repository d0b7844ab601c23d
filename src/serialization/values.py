"""Conversion of the content of a file to plain values of limited depth and number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from src.serialization.limits import ITEMS, NAME_LENGTH, NESTING, Refusal, shown
from src.serialization.pickles import Foreign, Name
from src.serialization.tensors import Odd, Stored

_LEAVES = (str, int, float, bool, bytes, type(None), Tensor, torch.dtype)


class Stub:
    """Placeholder for an object of another class."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{shown(self.name)}, not read>"


def plain(value: Any, *, foreign: bool) -> Any:
    """Validate the content of a file and convert objects of other classes.

    Args:
        value: The content; containers are changed in place.
        foreign: Whether objects of other classes are allowed: dictionaries become ``OrderedDict``,
            lists become lists, and everything else becomes an empty `Stub`.

    Raises:
        Refusal: If there are objects of other classes that are not allowed, or containers that
            contain themselves, are nested too deeply or are too large.
    """
    return _Walk(foreign).visit(value)[0]


class _Walk:
    def __init__(self, foreign: bool) -> None:
        self.foreign = foreign
        self.path: list[str] = []
        self.done: dict[int, tuple[Any, int]] = {}
        self.inside: set[int] = set()
        self.kept: list[Any] = []  # keeps objects alive, so that ids stay unique

    def visit(self, value: Any) -> tuple[Any, int]:
        """The converted value, and the number of values in it, counted once per reference."""
        if isinstance(value, _LEAVES):
            return value, 1
        if isinstance(value, (Name, Odd, Stored)):
            return self._single(value), 1
        known = self.done.get(id(value))
        if known is not None:
            return known
        if id(value) in self.inside:
            raise Refusal(f"{self._where()} contains itself")
        if len(self.path) >= NESTING:
            raise Refusal(f"its containers are nested more than {NESTING} deep")
        self.inside.add(id(value))
        self.kept.append(value)
        result = self._container(value)
        self.inside.discard(id(value))
        if result[1] > ITEMS:
            raise Refusal(f"{self._where()} has more than {ITEMS:,} values")
        self.done[id(value)] = result
        return result

    def _single(self, value: Name | Odd | Stored) -> Any:
        if isinstance(value, Stored):
            if self.foreign:
                return Stub("a storage without a tensor")
            raise Refusal(f"{self._where()} is a storage without a tensor")
        if self.foreign:
            return Stub(value.name) if isinstance(value, Name) else value
        if isinstance(value, Odd):
            raise Refusal(f"{self._where()} is a tensor that is {value.kind}")
        raise Refusal(f"{self._where()} is a reference to {shown(value.name)}")

    def _container(self, value: Any) -> tuple[Any, int]:
        if isinstance(value, Foreign):
            return self._foreign(value)
        if isinstance(value, dict):
            return value, self._fill(value, list(value.items()))
        if type(value) is list:
            return value, self._fill(value, list(enumerate(value)))
        if type(value) is tuple or type(value) is torch.Size:
            items = list(value)
            count = self._fill(items, list(enumerate(items)))
            return (value if type(value) is torch.Size else tuple(items)), count
        if type(value) is set:
            return value, self._keys(value)
        raise Refusal(f"{self._where()} is a {type(value).__name__}")

    def _fill(self, container: Any, items: list[tuple[Any, Any]]) -> int:
        total = 1
        if isinstance(container, dict):
            total += self._keys(container)
        for key, item in items:
            self.path.append(str(key) if isinstance(key, (str, int)) else "...")
            final, count = self.visit(item)
            self.path.pop()
            total += count
            if final is not item:
                container[key] = final
        return total

    def _keys(self, keys: Any) -> int:
        if not self.foreign and any(isinstance(key, (Foreign, Name)) for key in keys):
            raise Refusal(f"{self._where()} has objects as keys")
        return len(keys)

    def _foreign(self, value: Foreign) -> tuple[Any, int]:
        if not self.foreign:
            raise Refusal(f"{self._where()} is an object of {shown(value.name)}")
        if value.entries:
            entries: OrderedDict[Any, Any] = value.entries
            return entries, self._fill(entries, list(entries.items()))
        if value.items:
            return value.items, self._fill(value.items, list(enumerate(value.items)))
        return Stub(value.name), 1

    def _where(self) -> str:
        names = [name[:NAME_LENGTH] for name in self.path]
        return shown(".".join(names)) if names else "the whole content"
