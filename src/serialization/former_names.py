"""Former names of constructor arguments, which configurations and checkpoints may still have.

A class lists them in an attribute ``former_arguments``, from the former to the present name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


def former_arguments(owner: Any) -> Mapping[str, str]:
    """Former names of the arguments of a class, mapped to the present ones."""
    former: Mapping[str, str] = getattr(owner, "former_arguments", {})
    return former


def present_name(owner: Any, name: str) -> str:
    """Present name of an argument of a class, with a warning for a former one."""
    former = former_arguments(owner)
    if name not in former:
        return name
    warnings.warn(
        f"{owner.__name__}: the argument {name} was renamed to {former[name]}.",
        FutureWarning,
        stacklevel=2,
    )
    return former[name]


def with_present_names(owner: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class under their present names, which take precedence."""
    renamed = {present_name(owner, name): value for name, value in given.items()}
    return renamed | {name: given[name] for name in renamed if name in given}
