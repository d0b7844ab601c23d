"""Data modules, plain datasets, transforms, toy data, and the prepare and verify commands.

``from src.data import ImageNetDataModule`` works for every data module of
``src.data.datamodules``. They are imported on first use, because ``python -m src prepare`` and
``verify`` need no Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.data.datamodules import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import the data modules when one of them is first asked for."""
    if not name.endswith("DataModule"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("src.data.datamodules"), name)
