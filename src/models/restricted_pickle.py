"""Read the files that ``torch.save`` writes without running anything that they name.

A file may hold more than tensors: configurations, schedulers, numpy scalars, histories. It is read
twice. The first pass only looks: every name in the pickle stands for an empty class of this module,
which notes whether the file fills it like a dictionary or like a list. The second pass is PyTorch's
restricted unpickler, which knows tensors and basic types; for every other name it is given a
dictionary, a list or an inert stub.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from src.errors import UserError

_UNSUPPORTED = (pickle.UnpicklingError, TypeError, AttributeError)
_PICKLES_AFTER_MAGIC_NUMBER = ("version", "system", "content")  # of the format without zip


def load(path: Path) -> Any:
    """Read a file of ``torch.save``, in either of its formats, on the CPU.

    Args:
        path: The file.

    Returns:
        The content. Foreign dictionaries are ``OrderedDict``, foreign lists and deques are lists,
        all other foreign objects are stubs without content.

    Raises:
        UserError: If the file is intact, but holds what cannot be read safely.
        Exception: Of several classes, if the file is damaged or of another kind.
    """
    is_zip = zipfile.is_zipfile(path)
    foreign = _names_in_zip(path) if is_zip else _names_in_old_file(path)
    for name in foreign.values():
        name.refuse_if_unreadable(path)
    stubs: list[Any] = [(found.stub(), spelling) for spelling, found in foreign.items()]
    with torch.serialization.safe_globals(stubs):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except _UNSUPPORTED as error:  # the pickle is intact: the first pass has read it
            raise UserError(_refusal(path, _reason(error))) from error


class _Inert:
    """Stands in for a class of the file that is not needed and must not run."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


class _EmptyDictionary(_Inert):
    """Gives the one kind of dictionary that takes both entries and attributes from a file."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _EmptyList(_Inert):
    """Gives the one kind of list that takes items from a file."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


class _Seen:
    """Stands for one name while a file is looked at; each name has its own subclass."""

    name: ClassVar[str]
    has_items: ClassVar[bool] = False
    has_entries: ClassVar[bool] = False
    has_attributes: ClassVar[bool] = False
    has_other_state: ClassVar[bool] = False

    def __new__(cls, *_: Any, **__: Any) -> _Seen:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def __call__(self, *_: Any, **__: Any) -> _Seen:
        return self

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            type(self).has_attributes = True
        else:
            type(self).has_other_state = True

    def __setitem__(self, key: Any, value: Any) -> None:
        type(self).has_entries = True

    def append(self, item: Any) -> None:
        type(self).has_items = True

    def extend(self, items: Any) -> None:
        type(self).has_items = True

    @classmethod
    def stub(cls) -> type[_Inert]:
        """The class for the second pass, called like the original in messages."""
        base = _Inert
        if cls.has_entries:
            base = _EmptyDictionary
        elif cls.has_items:
            base = _EmptyList
        module, _, name = cls.name.rpartition(".")
        return type(name, (base,), {"__module__": module})

    @classmethod
    def refuse_if_unreadable(cls, path: Path) -> None:
        """Raise for what PyTorch's unpickler cannot fill."""
        if cls.has_items and (cls.has_entries or cls.has_attributes or cls.has_other_state):
            raise UserError(_refusal(path, f"{cls.name} is a list with attributes"))
        if cls.has_entries and cls.has_other_state:
            raise UserError(_refusal(path, f"{cls.name} is a dictionary with a state of its own"))


class _Survey(pickle.Unpickler):
    """Walks through a pickle and notes its names; makes nothing but `_Seen` and basic types."""

    def __init__(self, file: IO[bytes], seen: dict[str, type[_Seen]]) -> None:
        super().__init__(file, encoding="latin1")
        self._seen = seen

    def find_class(self, module: str, name: str) -> type[_Seen]:
        old = f"{module}.{name}"
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        new = f"{module}.{name}"
        if new not in self._seen:
            self._seen[new] = type("_SeenHere", (_Seen,), {"name": new})
        # PyTorch translates most names of Python 2, not all: either spelling is known.
        self._seen[old] = self._seen[new]
        return self._seen[new]

    def persistent_load(self, pid: Any) -> None:  # a storage, of no interest here
        return


def _names_in_zip(path: Path) -> dict[str, type[_Seen]]:
    seen: dict[str, type[_Seen]] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.split("/")[1:] == ["constants.pkl"] for name in names):
            raise UserError(_refusal(path, "it is a TorchScript program"))
        entries = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if not entries:
            raise ValueError("it is a zip archive that torch.save has not written")
        with archive.open(entries[0]) as file:
            _Survey(file, seen).load()
    return seen


def _names_in_old_file(path: Path) -> dict[str, type[_Seen]]:
    seen: dict[str, type[_Seen]] = {}
    with path.open("rb") as file:
        if _Survey(file, seen).load() != torch.serialization.MAGIC_NUMBER:
            raise ValueError("it does not start like a file of torch.save")
        for _ in _PICKLES_AFTER_MAGIC_NUMBER:
            _Survey(file, seen).load()
    return seen


def _reason(error: Exception) -> str:
    text = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip() or type(error).__name__
    reason = text.splitlines()[0][:200].rstrip(". ")
    if reason.startswith("Unsupported operand"):
        reason += "; the file has another pickle protocol than torch.save writes by itself"
    return reason


def _refusal(path: Path, reason: str) -> str:
    return (
        f"The weight file {path} is intact, but holds something that cannot be read without "
        f"running code of the file: {reason}. Save the tensors alone where the file comes from: "
        f"torch.save(network.state_dict(), file)."
    )
