"""Toy scenes on disk as ImageNet class folders: images of one shape each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from src import files
from src.data.toy.layout import SPLITS, ToySettings, write_layout
from src.data.toy.scenes import SHAPES, draw_scene
from src.data.workers import obey_parent_only

_MIN_IMAGES_FOR_POOL = 500  # fewer are drawn faster without a process pool


def write_toy_imagenet(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{train,val}/<shape>/*.jpg`` and ``folder/predict/*.jpg``: `write_layout`."""
    return write_layout(folder, settings, _draw_all, force=force)


def describe(settings: ToySettings) -> str:
    """What is in the folder, for the user."""
    return (
        f"{len(SHAPES)} classes with {settings.train} train and {settings.val} val images each, "
        f"{settings.predict} to predict"
    )


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


def _draw_all(folder: Path, settings: ToySettings) -> None:
    images = list(_images(folder, settings))
    for parent in {image.path.parent for image in images}:
        parent.mkdir(parents=True)
    draw = partial(_draw, settings=settings)
    if len(images) < _MIN_IMAGES_FOR_POOL:
        for image in images:
            draw(image)
        return
    with ProcessPoolExecutor(initializer=obey_parent_only) as pool:
        for _ in pool.map(draw, images, chunksize=32):
            pass  # iterating over the results raises errors of the processes


def _draw(image: _ToyImage, settings: ToySettings) -> None:
    seed = [settings.seed, SPLITS.index(image.split), image.label, image.number]
    shape, size = list(SHAPES)[image.label], (settings.size, settings.size)
    scene = draw_scene([shape], size, np.random.default_rng(seed))
    files.write_image(image.path, Image.fromarray(scene.image), quality=92)
