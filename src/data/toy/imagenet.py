"""Toy scenes on disk as ImageNet class folders, and what the other layouts share.

Every image has a random generator of its own, seeded by (seed, split, class, number), so the
files do not depend on each other or on the order in which they are drawn. A folder appears under
its name only when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from src import files
from src.data.toy.scenes import SHAPES, draw_scene
from src.data.workers import obey_parent_only
from src.errors import UserError

_RECORD = "toy.json"
_DRAWING_VERSION = 1  # raise it when the drawings change, so that old toy data is noticed
_WORTH_PROCESSES = 500  # images; fewer are drawn sooner than processes start
_SPLITS = ("train", "val", "predict")


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


def write_toy_imagenet(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{train,val}/<shape>/*.jpg`` and ``folder/predict/*.jpg`` if missing.

    Args:
        folder: Folder to make, for example ``data/toy/imagenet``.
        settings: Numbers, size and seed.
        force: Replace toy data of other settings.

    Returns:
        True if the images were drawn, False if they were there already.

    Raises:
        UserError: If the folder holds something else, or toy data of other settings without
            ``force``.
    """
    return write_layout(
        folder,
        settings,
        lambda unfinished: _draw_all(list(_images(unfinished, settings)), settings),
        force=force,
    )


def write_layout(
    folder: Path, settings: ToySettings, draw: Callable[[Path], None], *, force: bool = False
) -> bool:
    """Fill a folder if it is not there yet; it appears only when it is complete.

    Args:
        folder: Folder to make.
        settings: What determines the images; kept beside them.
        draw: Fills the folder that it is given.
        force: Replace toy data of other settings.

    Returns:
        True if the images were drawn, False if they were there already.

    Raises:
        UserError: See `write_toy_imagenet`.
    """
    record = {"drawing": _DRAWING_VERSION, **asdict(settings)}
    if folder.exists() and _is_there(folder, record, force):
        return False
    with files.whole_folder(folder, last=[_RECORD]) as unfinished:
        draw(unfinished)
        files.write_json(unfinished / _RECORD, record, indent=1)
    return True


@dataclass(frozen=True)
class _ToyImage:
    """One file to draw; split, label and number seed its generator."""

    path: Path
    split: str
    label: int
    number: int


def _images(folder: Path, settings: ToySettings) -> Iterator[_ToyImage]:
    for label, shape in enumerate(SHAPES):
        for split, count in (("train", settings.train), ("val", settings.val)):
            for number in range(count):
                path = folder / split / shape / f"{shape}_{number:04d}.jpg"
                yield _ToyImage(path, split, label, number)
    for number in range(settings.predict):
        path = folder / "predict" / f"image_{number:02d}.jpg"
        yield _ToyImage(path, "predict", number % len(SHAPES), number)


def _draw_all(images: list[_ToyImage], settings: ToySettings) -> None:
    for folder in {image.path.parent for image in images}:
        folder.mkdir(parents=True)
    draw = partial(_draw, settings=settings)
    if len(images) < _WORTH_PROCESSES:
        for image in images:
            draw(image)
        return
    with ProcessPoolExecutor(initializer=obey_parent_only) as pool:
        for _ in pool.map(draw, images, chunksize=32):
            pass  # taking the results raises what went wrong in a process


def _draw(image: _ToyImage, settings: ToySettings) -> None:
    seed = [settings.seed, _SPLITS.index(image.split), image.label, image.number]
    shape, size = list(SHAPES)[image.label], (settings.size, settings.size)
    scene = draw_scene([shape], size, np.random.default_rng(seed))
    files.write_image(image.path, Image.fromarray(scene.image), quality=92)


def _is_there(folder: Path, record: dict[str, int], force: bool) -> bool:
    """Whether an existing folder already is what is wanted; only toy data may be replaced."""
    if all(files.is_leftover(entry) for entry in folder.iterdir()):
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
