"""Toy scenes on disk as ADEChallengeData2016: images, and label maps that count from 1.

Class 1 is the background, class 2 the first shape; 0, unlabelled in ADE20K, does not occur. Names
in label order are in ``classes.txt``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from src import files
from src.data.toy.imagenet import ToySettings, write_layout
from src.data.toy.scenes import SHAPES, draw_scene

TOY_CLASSES = ("background", *SHAPES)
_MOST_OBJECTS = 3
_RADIUS = (0.18, 0.34)  # relative to the shorter side
_SEED = 20_000  # keeps these scenes apart from those of the other layouts
_FOLDERS = {"train": "training", "val": "validation", "predict": "predict"}


def write_toy_ade20k(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{images,annotations}/{training,validation}`` and ``folder/predict``.

    Args:
        folder: Folder to make, for example ``data/toy/ade20k``.
        settings: Numbers, size and seed; see `scenes` for how many that makes.
        force: Replace toy data of other settings.

    Returns:
        True if the scenes were drawn, False if they were there already.

    Raises:
        UserError: If the folder holds something else, or toy data of other settings without
            ``force``.
    """
    return write_layout(folder, settings, lambda new: _draw_all(new, settings), force=force)


def scenes(settings: ToySettings, split: str) -> int:
    """Number of scenes of a split; a scene shows about two shapes, a classification image one."""
    times = {"train": 4, "val": 2, "predict": 1}
    return int(getattr(settings, split)) * times[split]


def _draw_all(folder: Path, settings: ToySettings) -> None:
    for split, name in _FOLDERS.items():
        images = folder / "predict" if split == "predict" else folder / "images" / name
        labels = folder / "annotations" / name
        images.mkdir(parents=True)
        if split != "predict":
            labels.mkdir(parents=True)
        for number in range(scenes(settings, split)):
            image, label = _draw(split, number, settings)
            files.write_image(images / f"scene_{number:04d}.jpg", image, quality=92)
            if split != "predict":
                files.write_image(labels / f"scene_{number:04d}.png", label)
    files.write_text(folder / "classes.txt", "\n".join(TOY_CLASSES) + "\n")


def _draw(split: str, number: int, settings: ToySettings) -> tuple[Image.Image, Image.Image]:
    """One image and its label map."""
    rng = np.random.default_rng([settings.seed, _SEED, list(_FOLDERS).index(split), number])
    count = int(rng.integers(1, _MOST_OBJECTS + 1))
    names = [str(name) for name in rng.choice(list(SHAPES), count)]
    scene = draw_scene(names, (settings.size, settings.size), rng, _RADIUS)
    label = np.ones((settings.size, settings.size), np.uint8)
    for item in scene.objects:
        label[item.mask] = TOY_CLASSES.index(item.name) + 1
    return Image.fromarray(scene.image), Image.fromarray(label)
