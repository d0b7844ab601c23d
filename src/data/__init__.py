"""Data modules, plain datasets, transforms, toy data, and the prepare and verify commands.

The data modules are imported on first use, so that ``python -m src prepare`` and ``verify`` need
not wait for Lightning. To have their short names in YAML, import them by name: ``from src.data
import ImageNetDataModule``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.data.datamodules.ade20k import ADE20KDataModule
    from src.data.datamodules.base import BaseDataModule
    from src.data.datamodules.coco import COCODataModule
    from src.data.datamodules.coco_stuff import COCOStuffDataModule
    from src.data.datamodules.imagenet import ImageNetDataModule

__all__ = [
    "ADE20KDataModule",
    "BaseDataModule",
    "COCODataModule",
    "COCOStuffDataModule",
    "ImageNetDataModule",
]

_MODULES = {
    "ADE20KDataModule": "src.data.datamodules.ade20k",
    "BaseDataModule": "src.data.datamodules.base",
    "COCODataModule": "src.data.datamodules.coco",
    "COCOStuffDataModule": "src.data.datamodules.coco_stuff",
    "ImageNetDataModule": "src.data.datamodules.imagenet",
}


def __getattr__(name: str) -> Any:
    """Import a data module when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
