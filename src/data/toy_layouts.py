"""Toy scenes on disk in the layouts of the real data sets. So far: ImageNet class folders.

Every picture has a random generator of its own, seeded by (seed, split, class, number), so the
files do not depend on each other or on the order in which they are drawn. A folder appears under
its name only when it is complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.toy import SHAPES, draw_scene
from src.errors import UserError

_RECORD = "toy.json"
_DRAWING_VERSION = 1  # raise it when the drawings change, so that old toy data is noticed
_SPLITS = ("train", "val", "predict")


@dataclass(frozen=True)
class ToySettings:
    """What determines the toy pictures.

    Attributes:
        seed: Non-negative; other seeds give other pictures.
        train: Training pictures per class, at least 1.
        val: Validation pictures per class, at least 1.
        predict: Unlabelled pictures in all, at least 1.
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


def write_toy_imagenet(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{train,val}/<shape>/*.jpg`` and ``folder/predict/*.jpg`` if missing.

    Args:
        folder: Folder to make, for example ``data/toy/imagenet``.
        settings: Numbers, size and seed.
        force: Replace toy data of other settings.

    Returns:
        True if the pictures were drawn, False if they were there already.

    Raises:
        UserError: If the folder holds something else, or toy data of other settings without
            ``force``.
    """
    record = {"drawing": _DRAWING_VERSION, **asdict(settings)}
    if folder.exists() and _is_there(folder, record, force):
        return False
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for label, shape in enumerate(SHAPES):
        for split, count in (("train", settings.train), ("val", settings.val)):
            target = partial / split / shape
            target.mkdir(parents=True)
            for number in range(count):
                _draw(target / f"{shape}_{number:04d}.jpg", split, label, number, settings)
    (partial / "predict").mkdir()
    for number in range(settings.predict):
        path = partial / "predict" / f"picture_{number:02d}.jpg"
        _draw(path, "predict", number % len(SHAPES), number, settings)
    (partial / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return True


def _draw(path: Path, split: str, label: int, number: int, settings: ToySettings) -> None:
    rng = np.random.default_rng([settings.seed, _SPLITS.index(split), label, number])
    scene = draw_scene([list(SHAPES)[label]], (settings.size, settings.size), rng)
    Image.fromarray(scene.image).save(path, quality=92)


def _is_there(folder: Path, record: dict[str, int], force: bool) -> bool:
    """Whether an existing folder already is what is wanted; only toy data may be replaced."""
    if not any(folder.iterdir()):
        return False
    path = folder / _RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} exists and is not toy data (it has no {_RECORD}), so nothing was written. "
            "Choose another --root."
        )
    if json.loads(path.read_text()) == record:
        return True
    if force:
        return False
    raise UserError(
        f"{folder} holds toy data drawn with other settings ({path}). "
        "Repeat them, choose another --root, or replace it with --force."
    )
