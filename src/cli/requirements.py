"""Packages that every command may need, and the message if one of them is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

REQUIRED = (
    "torch", "lightning", "torchvision", "timm", "torchmetrics", "jsonargparse", "yaml", "numpy",
    "scipy", "PIL", "cv2", "albumentations", "pycocotools", "tensorboard", "rich", "safetensors",
    "huggingface_hub",
)  # fmt: skip
"""Import names of the dependencies in ``pyproject.toml``, and of PyYAML, which they bring."""
_MAX_NAMED = 3


def missing_requirement(error: BaseException) -> str | None:
    """Message about required packages that are not installed, or ``None``.

    Args:
        error: An error, possibly raised from the one of the import.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name in REQUIRED:
            return _message(cause.name)
        cause = cause.__cause__
    return None


def _message(name: str) -> str:
    absent = [other for other in REQUIRED if other == name or find_spec(other) is None]
    subject = "The package" if len(absent) == 1 else "The packages"
    names = ", ".join(absent[:_MAX_NAMED]) + (", ..." if absent[_MAX_NAMED:] else "")
    return (
        f"{subject} {names} {'is' if len(absent) == 1 else 'are'} not installed for"
        f" {sys.executable}: run `make install` and then `source .venv/bin/activate` in the folder"
        " of the project, or `pip install -e .` in an environment of your own."
    )
