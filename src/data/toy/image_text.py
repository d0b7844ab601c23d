"""Toy scenes with captions, in tars as img2dataset writes them, and single shapes in class folders.

The colours of shapes are random, so that captions and images have to be matched by shape, colour
and position. Class folders of single shapes serve zero-shot classification.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src import files
from src.data.toy.layout import ToySettings, scene_generator, write_layout
from src.data.toy.scenes import SHAPES, Region, draw_scene
from src.data.workers import obey_parent_only

COLOURS = {"red": 0.0, "yellow": 0.16, "green": 0.33, "cyan": 0.5, "blue": 0.66, "purple": 0.82}
"""Names and hues."""
TAR_SPLITS = ("train", "val")

_LAYOUT = 30_000  # part of the seed
_SCENES_PER_IMAGE = {"train": 16, "val": 4}  # of the settings, which count images per class
_TARS = {"train": 4, "val": 1}
_MIN_SCENES_FOR_POOL = 500
_ONE = (0.27, 0.45)  # radius of a single shape
_TWO = (0.17, 0.24)
_SINGLE_SHARE, _UNCOLOURED_SHARE = 0.5, 0.25
_HALVES: dict[str, tuple[Region, Region]] = {
    "left of": ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)),
    "right of": ((0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0)),
    "above": ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)),
    "below": ((0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5)),
}
_SINGLE = ("a {}", "a drawing of a {}", "an image of a {}", "one {} on a textured ground")


class Captioned(NamedTuple):
    """A drawn scene, uint8 ``(H, W, 3)``, and its caption."""

    image: NDArray[np.uint8]
    caption: str


def write_toy_image_text(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{train,val}/*.tar`` and ``folder/zero_shot/<shape>/*.jpg``: `write_layout`."""
    return write_layout(folder, settings, _draw_all, force=force)


def describe(settings: ToySettings) -> str:
    """What is in the folder, for the user."""
    train, val = (_number_of_scenes(settings, split) for split in TAR_SPLITS)
    return (
        f"{train} training and {val} validation scenes with captions in tars, {settings.val} "
        f"zero-shot images of each of {len(SHAPES)} classes"
    )


def draw_captioned(rng: np.random.Generator, size: int) -> Captioned:
    """One shape, or two in opposite halves of the image, with a caption that describes them.

    Args:
        rng: Source of all randomness.
        size: Height and width in pixels.
    """
    if rng.random() < _SINGLE_SHARE:
        names, hues, phrases = _shapes(rng, 1)
        image = draw_scene(names, (size, size), rng, _ONE, hues).image
        return Captioned(image, str(rng.choice(_SINGLE)).format(phrases[0]))
    names, hues, phrases = _shapes(rng, 2)
    relation = str(rng.choice(list(_HALVES)))
    image = draw_scene(names, (size, size), rng, _TWO, hues, _HALVES[relation]).image
    return Captioned(image, f"a {phrases[0]} {relation} a {phrases[1]}")


def _shapes(rng: np.random.Generator, count: int) -> tuple[list[str], list[float], list[str]]:
    """Names, hues, and words for the caption such as "red star"."""
    names = [str(name) for name in rng.choice(list(SHAPES), count)]
    colours = [str(name) for name in rng.choice(list(COLOURS), count)]
    with_colour = rng.random() >= _UNCOLOURED_SHARE
    words = [f"{c} {n}" if with_colour else n for c, n in zip(colours, names, strict=True)]
    return names, [COLOURS[colour] for colour in colours], words


def _number_of_scenes(settings: ToySettings, split: str) -> int:
    return int(getattr(settings, split)) * _SCENES_PER_IMAGE[split]


def _draw_all(folder: Path, settings: ToySettings) -> None:
    for split in TAR_SPLITS:
        (folder / split).mkdir(parents=True)
        count, tars = _number_of_scenes(settings, split), _TARS[split]
        draw = partial(_captioned_file, settings, split)
        drawn = _mapped(draw, range(count))
        for tar in range(tars):
            numbers = range(count * tar // tars, count * (tar + 1) // tars)
            path = folder / split / f"{tar:05d}.tar"
            _write_tar(path, tar, [next(drawn) for _ in numbers], settings.size)
    for label, shape in enumerate(SHAPES):
        (folder / "zero_shot" / shape).mkdir(parents=True)
        for number in range(settings.val):
            rng = scene_generator(settings, _LAYOUT + 1 + label, "val", number)
            hue = float(rng.choice(list(COLOURS.values())))
            image = draw_scene([shape], (settings.size, settings.size), rng, _ONE, [hue]).image
            path = folder / "zero_shot" / shape / f"{shape}_{number:04d}.jpg"
            files.write_image(path, Image.fromarray(image), quality=92)


def _mapped(draw: partial[tuple[bytes, str]], numbers: range) -> Iterator[tuple[bytes, str]]:
    if len(numbers) < _MIN_SCENES_FOR_POOL:
        yield from map(draw, numbers)
        return
    with ProcessPoolExecutor(initializer=obey_parent_only) as pool:
        yield from pool.map(draw, numbers, chunksize=32)


def _captioned_file(settings: ToySettings, split: str, number: int) -> tuple[bytes, str]:
    drawn = draw_captioned(scene_generator(settings, _LAYOUT, split, number), settings.size)
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue(), drawn.caption


def _write_tar(path: Path, tar: int, scenes: list[tuple[bytes, str]], size: int) -> None:
    with files.whole_file(path, durable=False) as part, tarfile.open(part, "w") as archive:
        for number, (image, caption) in enumerate(scenes):
            key = f"{tar:05d}{number:04d}"
            facts: dict[str, object] = {
                "caption": caption,
                "url": f"toy://{path.parent.name}/{key}",
                "key": key,
                "status": "success",
                "error_message": None,
                "width": size,
                "height": size,
                "original_width": size,
                "original_height": size,
                "sha256": hashlib.sha256(image).hexdigest(),
            }
            members = (("jpg", image), ("txt", caption.encode()), ("json", _json(facts)))
            for extension, content in members:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _json(facts: dict[str, object]) -> bytes:
    return json.dumps(facts, indent=4).encode()
