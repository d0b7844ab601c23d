"""Folder names of splits: ``train``, ``valid``, ``Testing``, ``val2017``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from src.errors import UserError

SPLITS = ("train", "val", "test")
_NAMES = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "validating", "valset", "validationset", "dev", "eval"),
    "test": ("test", "testing", "testset", "holdout"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}


def split_of(name: str) -> str | None:
    """The split that a folder name stands for; case and a year are ignored. None for others."""
    return _SPLIT_OF.get(re.sub(r"(?<=[a-z])[-_ ]?20\d\d$|[-_ ]", "", name.lower()))


def assign(folders: Iterable[Path], found: str) -> dict[str, Path]:
    """The folder of each split.

    Args:
        folders: Folders whose names all stand for a split.
        found: What was found, for the error.

    Raises:
        UserError: If two stand for the same split, or there is none for training.
    """
    splits: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        assert split is not None
        if split in splits:
            raise UserError(
                f"The folders {splits[split].name} and {folder.name} of {folder.parent} both mean "
                f"the {split} split; keep one of them."
            )
        splits[split] = folder
    if "train" not in splits:
        raise UserError(
            f"{found}: there is no folder of training images. Name one train (and one val, unless "
            "a part of it is to be kept for validation)."
        )
    return {split: splits[split] for split in SPLITS if split in splits}
