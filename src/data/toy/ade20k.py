"""Toy scenes on disk as ADEChallengeData2016: images, and label maps that count classes from 1.

Class 1 is the background, class 2 the first shape; 0, unlabelled in ADE20K, does not occur. The
class names are in ``classes.txt``, in label order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from src import files
from src.data.toy.layout import (
    ToySettings,
    number_of_scenes,
    random_shapes,
    scene_generator,
    write_layout,
)
from src.data.toy.scenes import SHAPES, draw_scene

TOY_CLASSES = ("background", *SHAPES)
_RADIUS = (0.18, 0.34)  # relative to the shorter side
_LAYOUT = 20_000  # part of the seed
_FOLDERS = {"train": "training", "val": "validation", "predict": "predict"}


def write_toy_ade20k(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{images,annotations}/{training,validation}`` and ``folder/predict``.

    Arguments, result and errors are those of `write_layout`.
    """
    return write_layout(folder, settings, _draw_all, force=force)


def describe(settings: ToySettings) -> str:
    """What is in the folder, for the user."""
    train, val = (number_of_scenes(settings, split) for split in ("train", "val"))
    return (
        f"{train} training and {val} validation scenes with label maps, {settings.predict} to "
        "predict"
    )


def _draw_all(folder: Path, settings: ToySettings) -> None:
    for split, name in _FOLDERS.items():
        images = folder / "predict" if split == "predict" else folder / "images" / name
        labels = folder / "annotations" / name
        images.mkdir(parents=True)
        if split != "predict":
            labels.mkdir(parents=True)
        for number in range(number_of_scenes(settings, split)):
            image, label = draw_pair(split, number, settings)
            files.write_image(images / f"scene_{number:04d}.jpg", image, quality=92)
            if split != "predict":
                files.write_image(labels / f"scene_{number:04d}.png", label)
    files.write_text(folder / "classes.txt", "\n".join(TOY_CLASSES) + "\n")


def draw_pair(split: str, number: int, settings: ToySettings) -> tuple[Image.Image, Image.Image]:
    """One image and its label map, which counts `TOY_CLASSES` from 1."""
    rng = scene_generator(settings, _LAYOUT, split, number)
    scene = draw_scene(random_shapes(rng), (settings.size, settings.size), rng, _RADIUS)
    label = np.ones((settings.size, settings.size), np.uint8)
    for item in scene.objects:
        label[item.mask] = TOY_CLASSES.index(item.name) + 1
    return Image.fromarray(scene.image), Image.fromarray(label)
