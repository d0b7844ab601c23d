"""From checked annotations of boxes or masks to a split dataset with a recipe.

This is the common part of ``prepare from-coco`` and ``prepare from-yolo``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import files
from src.data.custom import recipe, split
from src.data.custom.survey import Survey
from src.data.formats.coco_json import CocoFile, training_images
from src.data.formats.image_files import list_images
from src.data.formats.splits import SPLITS
from src.errors import UserError, agreed, counted
from src.types import ImageId

_MAX_CLASSES = 15  # that are listed with their number of objects
_MAX_NAMED = 10  # of the classes in a note
_MIN_SIZE = 32  # pixels; data.min_size of the recipe


@dataclass
class Part:
    """The annotations of one split.

    Attributes:
        file: The checked annotations.
        images: Folder that the file names start in.
        survey: What was found in the images.
        content: Content of an annotation file that is still to be written.
    """

    file: CocoFile
    images: Path
    survey: Survey
    content: dict[str, list[Any]] | None = None


def prepare(
    args: argparse.Namespace,
    name: str,
    out: Path,
    source: Path,
    parts: dict[str, Part],
    content: dict[str, list[Any]],
    notes: list[str],
) -> None:
    """Split, report, and write annotation files and recipe.

    Args:
        args: Arguments of `split` and `recipe`.
        name: Name of the recipe.
        out: Folder to make.
        source: What the user gave, for messages and ``prepared.json``.
        parts: The splits; without validation images, some of the training images are taken.
        content: Content of the annotation file for training.
        notes: Notes for the user.

    Raises:
        UserError: If nothing is left for training.
    """
    train = parts["train"].file
    if not train.num_usable:
        what = "a box and a mask" if train.masks else "a box"
        raise UserError(f"{source} has no annotation with {what}, so nothing can be learned.")
    indices = {part: np.arange(len(found.file.images)) for part, found in parts.items()}
    new = {part: found.content for part, found in parts.items() if found.content is not None}
    is_divided = "val" not in parts
    surveys = sum((found.survey for found in parts.values()), Survey())
    if is_divided:
        divided = _divide(train, source, args)
        indices |= divided
        parts = parts | {"val": parts["train"]}
        for part, chosen_indices in divided.items():
            new[part] = _selected(content, {train.images[i].id for i in chosen_indices})
    chosen = indices["train"]
    kept, left_out = training_images(
        train, keep_empty=False, min_size=_MIN_SIZE, indices=chosen.tolist()
    )
    if not kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        images = counted(len(chosen), "image")
        raise UserError(f"{source} has {images}, none of them for training: {reasons}.")
    order = [part for part in SPLITS if part in parts]
    learned = {part: parts[part].file.count_training_annotations(indices[part]) for part in order}
    data: dict[str, Any] = {"root": "."}
    for part in order:
        path = out / "annotations" / f"{part}.json" if part in new else parts[part].file.path
        data |= {f"{part}_images": str(parts[part].images), f"{part}_annotations": str(path)}
    facts = {"source": str(source), "val_share": args.val_share, "seed": args.seed}
    with split.start_over(args, out, ("annotations", "val"), facts) as work:
        numbers = {part: len(indices[part]) for part in order} | {"train": len(kept)}
        print(f"{out}: {split.image_counts(numbers)}; objects ({split.columns(order)}):")
        for line in _class_lines(train.class_names, [learned[part] for part in order]):
            print(f"  {line}")
        for reason, count in left_out.items():
            images = counted(len(chosen), "training image")
            print(f"note: {count} of {images} {agreed(count, 'is', 'are')} left out: {reason}")
        for note in [*_absent_classes(train, learned, is_divided, args), *notes]:
            print(f"note: {note}")
        print(f"Checked: {surveys}")
        for part, written in new.items():
            files.write_json(work / "annotations" / f"{part}.json", written)
        task = "detection" if train.masks else "boxes"
        unseen = _unseen(parts, indices["val"], out, work, args.mode)
        recipe.write(args, out / f"{name}.yaml", task, data, len(kept), work, unseen)


def _absent_classes(
    train: CocoFile,
    learned: dict[str, NDArray[np.int64]],
    is_divided: bool,
    args: argparse.Namespace,
) -> list[str]:
    """Notes about classes without annotations for training or for validation."""
    notes = []
    never = learned["train"] == 0
    unseen = (learned["val"] == 0) & ~never
    if never.any():
        named, they = _chosen_classes(train.class_names, never), _pronoun(never, "it", "they")
        notes.append(f"no training annotation, so {they} cannot be learned: {named}")
    if unseen.any():
        named = _chosen_classes(train.class_names, unseen)
        if is_divided:
            classes = train.classes_of_images()
            named += split.advice_on_share(classes, args.val_share, args.seed)
        them = _pronoun(unseen, "it", "them")
        notes.append(f"no validation annotation, so the metrics leave {them} out: {named}")
    return notes


def _unseen(
    parts: dict[str, Part], validation: NDArray[np.int64], out: Path, work: Path, mode: str
) -> Path:
    """Folder of the validation images alone, which is made if other images lie beside them."""
    val = parts["val"]
    paths = {val.file.images[i].path(val.images, val.file.path) for i in validation}
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    if len(list_images(folder)) == len(paths):
        return folder
    for path in sorted(paths):
        split.place(path, work / "val" / os.path.relpath(path, val.images), mode)
    return out / "val"


def check_categories(train: CocoFile, val: CocoFile) -> None:
    """Refuse splits with different categories.

    Raises:
        UserError: If they differ.
    """
    if train.categories != val.categories:
        raise UserError(
            f"{val.path} has other categories than {train.path}: {val.class_names} instead of "
            f"{train.class_names}. Both files must list the same ids and names."
        )


def _divide(file: CocoFile, source: Path, args: argparse.Namespace) -> dict[str, NDArray[np.int64]]:
    """Indices of the images of each part."""
    if len(file.images) < 2:
        raise UserError(f"{source} has one image; two are needed, one for validation.")
    numbers = [str(index) for index in range(len(file.images))]
    divided = split.split_by_class(numbers, file.classes_of_images(), args.val_share, args.seed)
    return {
        part: np.array(chosen, dtype=np.int64)
        for part, chosen in zip(("train", "val"), divided, strict=True)
    }


def _selected(content: dict[str, list[Any]], kept: set[ImageId]) -> dict[str, list[Any]]:
    """The entries of some images, in the order of the source and unchanged."""
    return content | {
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
    }


def _class_lines(names: list[str], counts: list[NDArray[np.int64]]) -> list[str]:
    """Number of objects of the classes that have some, in label order.

    Args:
        names: Class names in label order.
        counts: Objects of each class, for each split.
    """
    total = np.sum(counts, axis=0)
    found = np.flatnonzero(total)
    lines = [
        f"{names[label]}: " + " + ".join(str(part[label]) for part in counts)
        for label in found[:_MAX_CLASSES]
    ]
    more = len(found) - _MAX_CLASSES
    return lines + [f"and {more} more {agreed(more, 'class', 'classes')}"] * (more > 0)


def _pronoun(chosen: NDArray[np.bool_], one: str, several: str) -> str:
    return agreed(int(chosen.sum()), one, several)


def _chosen_classes(names: list[str], chosen: NDArray[np.bool_]) -> str:
    """Number and names of some classes."""
    found = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    more = f" and {len(found) - _MAX_NAMED} more" if found[_MAX_NAMED:] else ""
    classes = f"{len(found)} of {len(names)} {agreed(len(names), 'class', 'classes')}"
    return f"{classes} ({', '.join(found[:_MAX_NAMED])}{more})"
