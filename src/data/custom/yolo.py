"""``prepare from-yolo``: images with YOLO label files, one text file per image.

Give the ``data.yaml`` of the dataset, or its folder. A line of a label file is ``class x y width
height``, relative to the image size, with the centre of the box; or ``class x1 y1 x2 y2 ...``, a
polygon. Boxes become a recipe of DINO, and polygons one of Mask R-CNN. Folders without a yaml file
are read, too, if the label files are beside the images or in ``labels`` beside ``images``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.data.custom import recipe, split
from src.data.custom.detection import Part, prepare
from src.data.custom.survey import Survey, look_at
from src.data.custom.yolo_labels import Box, read_labels
from src.data.custom.yolo_layout import Dataset, find_dataset, label_file
from src.data.formats.coco_json import MAX_ANNOTATIONS, CocoFile
from src.data.formats.faults import Faults
from src.errors import UserError, agreed, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("dataset", type=Path, help="a data.yaml, or the folder of the dataset")
    add("--class-names", nargs="+", help="names in label order (default: from data.yaml)")
    add(
        "--max-annotations",
        type=int,
        default=MAX_ANNOTATIONS,
        help="refuse images with more (%(default)s)",
    )
    split.add_arguments(parser, places_files=True)
    recipe.add_arguments(parser, "detection")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, convert into COCO files, split, write the recipe and print the next commands.

    Raises:
        UserError: If files are missing or broken, or lines are no labels.
    """
    dataset = find_dataset(args.dataset, args.class_names)
    name, out, notes = split.target(args, dataset.root)
    images = [path for part in dataset.splits.values() for path in part]
    if len({path.is_absolute() for path in images}) > 1:  # data.yaml has paths of both kinds
        splits = {
            part: [path.absolute() for path in paths] for part, paths in dataset.splits.items()
        }
        dataset = replace(dataset, splits=splits)
        images = [path for part in dataset.splits.values() for path in part]
    folder = Path(os.path.commonpath([path.parent for path in images]))
    surveys, labels = _check(dataset, args.max_pixels)
    boxes = [box for found in labels.values() for box in found or ()]
    if not boxes:
        raise UserError(
            f"{_none_of(images)} of {args.dataset} has a label; the labels of "
            f"{images[0]} are expected in {label_file(images[0])}."
        )
    masks = dataset.has_polygons and all(box.polygon for box in boxes)
    names = dataset.names or [f"class {i}" for i in range(1 + max(box.label for box in boxes))]
    parts = {}
    for part, paths in dataset.splits.items():
        found = surveys[part]
        content = _coco({p: (found.sizes[str(p)], labels[p] or []) for p in paths}, folder, names)
        path = out / "annotations" / f"{part}.json"
        file = CocoFile(path, masks, None, args.max_annotations, content)
        parts[part] = Part(file, folder, found, content)
    notes += dataset.notes
    missing = sum(found is None for found in labels.values())
    if missing:
        notes.append(
            f"{missing} of {counted(len(images), 'image')} {agreed(missing, 'has', 'have')}"
            " no label file: no objects"
        )
    kind = "polygons, so the recipe trains Mask R-CNN" if masks else "boxes: the recipe trains DINO"
    notes.append(f"the labels are {kind}")
    content = parts["train"].content or {}
    prepare(args, name, out, args.dataset, parts, content, notes)


def _none_of(images: list[Path]) -> str:
    return f"None of the {len(images)} images" if len(images) > 1 else "The only image"


def _check(
    dataset: Dataset, max_pixels: int
) -> tuple[dict[str, Survey], dict[Path, list[Box] | None]]:
    """Decode the images of all splits and read their labels.

    Args:
        dataset: The dataset.
        max_pixels: Larger images count as broken.

    Returns:
        What was found in the images of each split, and the labels of each image, None if it has no
        label file.

    Raises:
        UserError: If lines are wrong or images are broken; the message has a line for each kind of
            fault.
    """
    faults = Faults("wrong lines")
    count = len(dataset.names) if dataset.names else None
    surveys, labels = {}, {}
    for part, paths in dataset.splits.items():
        surveys[part] = look_at([str(path) for path in paths], max_pixels)
        for image in paths:
            path = label_file(image)
            is_labelled = path.is_file()
            read = read_labels(path, count, dataset.has_polygons, faults) if is_labelled else None
            labels[image] = read
    images = sum(surveys.values(), Survey())
    if problems := [*images.unreadable(), *faults.lines()]:
        raise UserError("\n".join(problems))
    return surveys, labels


def _coco(
    images: dict[Path, tuple[tuple[int, int], list[Box]]], folder: Path, names: list[str]
) -> dict[str, list[Any]]:
    """Content of a COCO annotation file.

    Args:
        images: Height, width and labels of each image.
        folder: Folder that the file names start in.
        names: Class names.
    """
    entries: list[Any] = []
    annotations: list[Any] = []
    for number, (path, ((height, width), boxes)) in enumerate(images.items(), 1):
        entries.append(
            {
                "id": number,
                "file_name": path.relative_to(folder).as_posix(),
                "height": height,
                "width": width,
            }
        )
        for box in boxes:
            left, top, right, bottom = box.corners
            polygon = [v * (width, height)[i % 2] for i, v in enumerate(box.polygon)]
            sides = (right - left) * width, (bottom - top) * height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": box.label + 1,
                    "bbox": [left * width, top * height, *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": 0,
                    "segmentation": [polygon] if polygon else [],
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    return {"images": entries, "annotations": annotations, "categories": categories}
