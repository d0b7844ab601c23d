"""Toy scenes on disk as iNaturalist 2018: one shape each, with a date and a place.

Each shape is drawn in one half of the year and on one side of the Greenwich meridian, so that
metadata helps. Every fifth image has no date, and every seventh no place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from src import files
from src.data.toy.layout import ToySettings, scene_generator, write_layout
from src.data.toy.scenes import SHAPES, draw_scene

_LAYOUT = 30_000  # part of the seed
_WITHOUT_DATE, _WITHOUT_PLACE = 5, 7


def write_toy_inaturalist(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write four json files and ``folder/train_val2018/<shape>/*.jpg``.

    Arguments, result and errors are those of `write_layout`.
    """
    return write_layout(folder, settings, _draw_all, force=force)


def describe(settings: ToySettings) -> str:
    """What is in the folder, for the user."""
    return (
        f"{len(SHAPES)} classes with {settings.train} train and {settings.val} val images each,"
        " with dates and places"
    )


def _draw_all(folder: Path, settings: ToySettings) -> None:
    categories = [
        {"id": label, "name": shape, "supercategory": "shape"} for label, shape in enumerate(SHAPES)
    ]
    for shape in SHAPES:
        (folder / "train_val2018" / shape).mkdir(parents=True)
    for split, count in (("train", settings.train), ("val", settings.val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, int]] = []
        locations: list[dict[str, Any]] = []
        for number in range(count * len(SHAPES)):
            label = number % len(SHAPES)
            file = f"train_val2018/{list(SHAPES)[label]}/{split}_{number:04d}.jpg"
            rng = scene_generator(settings, _LAYOUT, split, number)
            scene = draw_scene([list(SHAPES)[label]], (settings.size, settings.size), rng)
            files.write_image(folder / file, Image.fromarray(scene.image), quality=92)
            images.append(
                {"id": number, "file_name": file, "width": settings.size, "height": settings.size}
            )
            annotations.append({"id": number, "image_id": number, "category_id": label})
            month = 1 + 6 * (label % 2) + int(rng.integers(6))
            side = 1 if label % 4 < 2 else -1
            place = (float(rng.uniform(-60, 60)), side * float(rng.uniform(5, 175)))
            locations.append(
                {
                    "date": f"2017-{month:02d}-15" if number % _WITHOUT_DATE else None,
                    "lat": place[0] if number % _WITHOUT_PLACE else None,
                    "lon": place[1] if number % _WITHOUT_PLACE else None,
                }
            )
        content = {"images": images, "annotations": annotations, "categories": categories}
        files.write_json(folder / f"{split}2018.json", content)
        files.write_json(folder / f"{split}2018_locations.json", locations)
