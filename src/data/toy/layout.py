"""Settings of the toy data, and what its layouts share: whole folders, random scenes.

A folder appears under its name only when it is complete. Every image has a random generator of its
own, so that the files depend neither on each other nor on the order in which they are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src import files
from src.data.toy.scenes import SHAPES
from src.errors import UserError

SPLITS = ("train", "val", "predict")
_RECORD = "toy.json"
_DRAWING_VERSION = 1  # raise it when the drawings change, so that old toy data is noticed
_SCENES = {"train": 4, "val": 2, "predict": 1}
_MOST_OBJECTS = 3


@dataclass(frozen=True)
class ToySettings:
    """What determines the toy images.

    Attributes:
        seed: Non-negative; other seeds give other images.
        train: Training images per class, at least 1.
        val: Validation images per class, at least 1.
        predict: Unlabelled images in all, at least 1.
        size: Height and width in pixels, at least 16.
    """

    seed: int = 0
    train: int = 160
    val: int = 40
    predict: int = 12
    size: int = 96

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"seed": 0, "train": 1, "val": 1, "predict": 1, "size": 16}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(
                    f"toy data: {name} accepts integers of at least {lowest}, got "
                    f"{getattr(self, name)}."
                )


def write_layout(
    folder: Path,
    settings: ToySettings,
    draw: Callable[[Path, ToySettings], None],
    *,
    force: bool = False,
) -> bool:
    """Fill a folder with toy data unless it holds the same data already.

    Args:
        folder: Folder to make, for example ``data/toy/coco``.
        settings: Numbers, size and seed; kept beside the images.
        draw: Fills the folder that it is given.
        force: Replace toy data of other settings.

    Returns:
        True if the images were drawn, False if they were there already.

    Raises:
        UserError: If the folder holds something else, or toy data of other settings without
            ``force``.
    """
    record = {"drawing": _DRAWING_VERSION, **asdict(settings)}
    if folder.exists() and _is_there(folder, record, force):
        return False
    with files.whole_folder(folder, last=[_RECORD]) as unfinished:
        draw(unfinished, settings)
        files.write_json(unfinished / _RECORD, record, indent=1)
    return True


def number_of_scenes(settings: ToySettings, split: str) -> int:
    """Number of scenes of a split; a scene shows about two shapes, a classification image one."""
    return int(getattr(settings, split)) * _SCENES[split]


def scene_generator(
    settings: ToySettings, layout: int, split: str, number: int
) -> np.random.Generator:
    """Random generator of one scene.

    Args:
        settings: Seed of the data.
        layout: Part of the seed, so that layouts with other numbers have other scenes.
        split: One of `SPLITS`.
        number: Which scene of the split.
    """
    return np.random.default_rng([settings.seed, layout, SPLITS.index(split), number])


def random_shapes(rng: np.random.Generator) -> list[str]:
    """One to three shapes for a scene."""
    count = int(rng.integers(1, _MOST_OBJECTS + 1))
    return [str(name) for name in rng.choice(list(SHAPES), count)]


def _read(path: Path) -> Any:
    """Content of a record; None if it is damaged, which fits no settings."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _is_there(folder: Path, record: dict[str, int], force: bool) -> bool:
    """Whether a folder already holds the requested data; only toy data may be replaced."""
    if all(files.is_leftover(entry) for entry in folder.iterdir()):
        return False
    path = folder / _RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} exists and is not toy data (it has no {_RECORD}), so nothing was written. "
            "Choose another --root."
        )
    if _read(path) == record:
        return True
    if force:
        return False
    raise UserError(
        f"{folder} holds toy data drawn with other settings ({path}). "
        "Repeat them, choose another --root, or replace it with --force."
    )
