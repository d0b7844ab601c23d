"""Parameter names of this project and the official ones.

The networks of this project name their parameters as the official code does, without the positional
indices of ``nn.Sequential``. The differences are in the attribute ``official_renames`` of the
modules that have them; all other names are the same.
"""

from __future__ import annotations

import re

from torch import nn

from src.models.weights.match import Renames


def official_names(module: nn.Module) -> dict[str, str]:
    """Official name of every entry of ``module.state_dict()``, by its name there.

    Args:
        module: A network or any module that contains one; prefixes such as ``backbone.`` stay.

    Returns:
        Names in the order of the state dict.
    """
    tables = [
        (f"{prefix}." if prefix else "", renames)
        for prefix, child in module.named_modules()
        if (renames := getattr(child, "official_renames", None))
    ]
    tables.sort(key=lambda table: len(table[0]), reverse=True)  # innermost module first
    names = {}
    for name in module.state_dict():
        prefix, rules = next((t for t in tables if name.startswith(t[0])), ("", ()))
        names[name] = prefix + _rename(name.removeprefix(prefix), rules)
    return names


def _rename(name: str, rules: Renames) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name
