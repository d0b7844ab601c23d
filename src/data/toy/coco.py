"""Toy scenes on disk in the COCO layout: images, and annotation files with boxes and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from src import files
from src.data.toy.layout import (
    ToySettings,
    number_of_scenes,
    random_shapes,
    scene_generator,
    write_layout,
)
from src.data.toy.scenes import SHAPES, Scene, SceneObject, draw_scene

_RADIUS = (0.16, 0.3)  # relative to the shorter side
_LAYOUT = 30_000  # part of the seed
_FOLDERS = {"train": "train2017", "val": "val2017", "predict": "predict"}
_SIDES = (3, 4)  # scenes are landscape or portrait, so that they can be grouped by orientation


def write_toy_coco(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
    """Write ``folder/{train2017,val2017,annotations}`` and ``folder/predict``.

    Arguments, result and errors are those of `write_layout`.
    """
    return write_layout(folder, settings, _draw_all, force=force)


def describe(settings: ToySettings) -> str:
    """What is in the folder, for the user."""
    train, val = (number_of_scenes(settings, split) for split in ("train", "val"))
    return (
        f"{train} training and {val} validation scenes with boxes and masks, {settings.predict} "
        "to predict"
    )


def _draw_all(folder: Path, settings: ToySettings) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, name in _FOLDERS.items():
        (folder / name).mkdir()
        images, annotations = [], []
        for number, scene in enumerate(draw_scenes(split, settings), start=1):
            file_name = f"{number:012d}.jpg"
            image = Image.fromarray(scene.image)
            files.write_image(folder / name / file_name, image, quality=92)
            height, width = scene.image.shape[:2]
            images.append({"id": number, "file_name": file_name, "height": height, "width": width})
            annotations += [annotation(item, number) for item in scene.objects]
        if split != "predict":
            content = {
                "images": images,
                "annotations": [a | {"id": i} for i, a in enumerate(annotations, start=1)],
                "categories": [{"id": i, "name": shape} for i, shape in enumerate(SHAPES, start=1)],
            }
            path = folder / "annotations" / f"instances_{name}.json"
            files.write_json(path, content)


def draw_scenes(split: str, settings: ToySettings) -> Iterator[Scene]:
    """Scenes of one to three shapes, landscape or portrait."""
    short, long = (settings.size * side // max(_SIDES) for side in _SIDES)
    for number in range(number_of_scenes(settings, split)):
        rng = scene_generator(settings, _LAYOUT, split, number)
        names = random_shapes(rng)
        size = (short, long) if rng.random() < 0.5 else (long, short)
        yield draw_scene(names, size, rng, _RADIUS)


def annotation(item: SceneObject, image_id: int) -> dict[str, Any]:
    """An object in the format of COCO, without an id."""
    x1, y1, x2, y2 = item.box
    return {
        "image_id": image_id,
        "category_id": list(SHAPES).index(item.name) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": _run_length_code(item.mask),
    }


def _run_length_code(mask: NDArray[np.bool_]) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
