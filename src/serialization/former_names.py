"""Former names of constructor arguments, which configurations and checkpoints may still have.

A class lists them in an attribute ``former_arguments``, from the former to the present name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


def former_arguments(owner: Any) -> Mapping[str, str]:
    """Former names of the arguments of a class, with the present ones."""
    former: Mapping[str, str] = getattr(owner, "former_arguments", {})
    return former


def present_name(owner: Any, name: str) -> str:
    """Present name of an argument of a class; a former one gives a warning."""
    former = former_arguments(owner)
    if name not in former:
        return name
    warnings.warn(
        f"{owner.__name__}: the argument {name} is now called {former[name]}; please rename it.",
        FutureWarning,
        stacklevel=2,
    )
    return former[name]


def with_present_names(owner: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class under their present names, which count if both are given."""
    renamed = {present_name(owner, name): value for name, value in given.items()}
    return renamed | {name: given[name] for name in renamed if name in given}
