"""Fingerprint of a value: of what it contains, and of the code of its classes and functions.

A function is described by its name, its source file, its default arguments, the variables that it
encloses and the object that it is bound to. Not described are global variables, code in other
source files, and attributes of modules that start with an underscore, except parameters, buffers
and submodules. Equal values may have different fingerprints, for example objects whose text
contains an address.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import CellType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.errors import UserError

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a value.

    Args:
        value: Plain values, tensors, arrays, modules, functions, other objects, and lists, tuples
            and dictionaries of them, without cycles.

    Raises:
        UserError: If a value contains itself.
    """
    try:
        described = _described(value)
    except RecursionError:
        raise UserError(
            f"{type(value).__name__} cannot be compared with that of an earlier run, because a part"
            " of it contains itself, such as an object with one of its own bound methods. Train"
            " without CachedFeatures, or store what the method needs instead."
        ) from None
    return hashlib.sha256(repr(described).encode()).hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _array(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), value)
    if isinstance(value, np.ndarray):
        return _array(np.ascontiguousarray(value), value)
    if isinstance(value, Mapping):
        return [(repr(_described(k)), _described(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_described(item)) for item in value)
    if isinstance(value, partial):
        return ["partial", *map(_described, (value.func, value.args, value.keywords))]
    if isinstance(value, nn.Module):
        return _module(value)
    if hasattr(value, "__qualname__"):  # functions and classes
        name = [value.__module__, value.__qualname__, _code(value.__module__)]
        return [*name, *map(_described, _held(value))]
    state = vars(value) if hasattr(value, "__dict__") else repr(value)
    return [*_described(type(value)), _described(state)]


def _held(function: Any) -> list[Any]:
    """The object that a method is bound to, default arguments and enclosed variables."""
    owner = getattr(function, "__self__", None)
    return [
        None if isinstance(owner, ModuleType) else owner,  # a module for built-in functions
        getattr(function, "__defaults__", None),
        getattr(function, "__kwdefaults__", None),
        [_content(cell) for cell in getattr(function, "__closure__", None) or ()],
    ]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _module(module: nn.Module) -> Any:
    public = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }
    parts = (public, module._parameters, module._buffers, module._modules)
    return [*_described(type(module)), *map(_described, parts)]


def _array(content: Any, like: Any) -> Any:
    return [str(like.dtype), list(like.shape), hashlib.sha256(content.tobytes()).hexdigest()]


@cache
def _code(module: str) -> str:
    """Digest of a source file; empty if there is none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
