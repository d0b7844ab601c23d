"""Where the recipes are: `configs` of a checkout, or `src/configs` of an installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


def own_recipe(name: str) -> Path | None:
    """The recipe that ``prepare`` has written for a dataset in its default folder, or ``None``.

    Args:
        name: Name of the dataset.
    """
    recipe = Path("data/own") / name / f"{name}.yaml"
    return recipe if recipe.is_file() else None


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace arguments such as `configs/toy/detection.yaml` by the recipes of a wheel.

    Files in the working directory take precedence.
    """
    return [_find(arg) for arg in args]


def _find(arg: str) -> str:
    path = arg.rpartition("=")[2]  # of --config=configs/...
    name = Path(path)
    if name.parts[:1] != ("configs",) or name.exists():
        return arg
    found = CONFIGS.joinpath(*name.parts[1:])
    return arg.removesuffix(path) + str(found) if found.is_file() else arg
