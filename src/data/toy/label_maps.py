"""The toy scenes of ``ade20k.py`` as Cityscapes, Mapillary, Pascal Context and NYU Depth v2.

Background and shapes take the numbers of the first classes of the dataset, so class names do not
say what is in the images; the trees are for trying data modules and recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from src import files
from src.data.toy.ade20k import TOY_CLASSES, describe, draw_pair
from src.data.toy.layout import ToySettings, number_of_scenes, write_layout

_TRAIN_IDS = range(len(TOY_CLASSES))  # road, sidewalk, ...
_MAPILLARY = (13, 15, 17, 6, 3, 45, 48, 50, 30, 29, 27)  # the same classes
_FROM_ONE = range(1, len(TOY_CLASSES) + 1)  # 0 is unlabelled
_COARSE = 2  # images with coarse label maps


def _draw_cityscapes(folder: Path, settings: ToySettings) -> None:
    for split in ("train", "train_extra", "val"):
        count = _COARSE if split == "train_extra" else number_of_scenes(settings, split)
        for number in range(count):
            image = folder / "leftImg8bit" / split / "toytown" / f"toytown_{number:06d}_000019"
            labels = "refinement_final" if split == "train_extra" else "gtFine"
            label = folder / labels / split / "toytown" / image.name
            _write(
                (split.removesuffix("_extra"), number),
                settings,
                _TRAIN_IDS,
                Path(f"{image}_leftImg8bit.png"),
                Path(f"{label}_gtFine_labelTrainIds.png"),
            )


def _draw_mapillary(folder: Path, settings: ToySettings) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        for number in range(number_of_scenes(settings, split)):
            image = folder / name / "images" / f"toy{number:018d}.jpg"
            label = folder / name / "labels" / f"{image.stem}.png"
            _write((split, number), settings, _MAPILLARY, image, label)


def _draw_listed(
    folder: Path,
    settings: ToySettings,
    images: str,
    labels: str,
    lists: dict[str, str],
    suffix: str,
) -> None:
    """Pairs in two folders, with a text file for each split."""
    for split, name in lists.items():
        stems = [f"{split}_{n:06d}" for n in range(number_of_scenes(settings, split))]
        for number, stem in enumerate(stems):
            image, label = folder / images / (stem + suffix), folder / labels / f"{stem}.png"
            _write((split, number), settings, _FROM_ONE, image, label)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / name, "\n".join(stems) + "\n")


def _draw_pascal_context(folder: Path, settings: ToySettings) -> None:
    lists = {s: f"ImageSets/SegmentationContext/{s}.txt" for s in ("train", "val")}
    _draw_listed(folder, settings, "JPEGImages", "SegmentationClassContext", lists, ".jpg")


def _draw_nyu_depth_v2(folder: Path, settings: ToySettings) -> None:
    lists = {"train": "train.txt", "val": "test.txt"}
    _draw_listed(folder, settings, "image", "label40", lists, ".png")


def _write(
    scene: tuple[str, int],
    settings: ToySettings,
    numbers: Sequence[int],
    image_file: Path,
    label_file: Path,
) -> None:
    """Write a scene, given its split and number, with ``numbers`` for the toy classes."""
    image, label = draw_pair(*scene, settings)
    values = np.array([0, *numbers], np.uint8)[np.asarray(label)]
    for path, content in ((image_file, image), (label_file, Image.fromarray(values))):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_image(path, content)


def _writer(draw: Callable[[Path, ToySettings], None]) -> Callable[..., bool]:
    def write(folder: Path, settings: ToySettings, *, force: bool = False) -> bool:
        return write_layout(folder, settings, draw, force=force)

    return write


def _describe(settings: ToySettings) -> str:
    return describe(settings).rpartition(",")[0]


LAYOUTS: dict[str, tuple[Callable[..., bool], Callable[[ToySettings], str]]] = {
    "cityscapes": (_writer(_draw_cityscapes), _describe),
    "mapillary": (_writer(_draw_mapillary), _describe),
    "pascal_context": (_writer(_draw_pascal_context), _describe),
    "nyu_depth_v2": (_writer(_draw_nyu_depth_v2), _describe),
}
"""What writes a layout, and what describes it, by the name of its folder."""
