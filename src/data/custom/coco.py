"""``prepare from-coco``: COCO annotation files and their image folders.

Give one file (a part of it is used for validation), one file for training and one for validation,
or a folder with a file for each split. If no annotation has a mask, the recipe is one of DINO.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from src.data.custom import recipe, split
from src.data.custom.coco_check import read_part
from src.data.custom.coco_layout import find_annotations, find_images, neighbours
from src.data.custom.detection import Part, check_categories, prepare
from src.data.formats.coco_json import MAX_ANNOTATIONS, read_coco
from src.errors import UserError
from src.file_names import quoted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add(
        "annotations", type=Path, help="a COCO file, or a folder with one for train, valid and test"
    )
    add("--images", type=Path, help="folder of the images (default: searched nearby)")
    add(
        "--val-annotations",
        type=Path,
        help="COCO file of the validation images (default: a random split)",
    )
    add("--val-images", type=Path, help="folder of the validation images (default: as --images)")
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
    """Check, split, write the recipe and print the next commands.

    Raises:
        UserError: If a file is broken, an image is missing, or its size is not that of the json.
    """
    sources = _find_files(args)
    is_folder = args.annotations.is_dir()
    path, images = sources["train"]
    source = args.annotations if is_folder else images
    name, out, name_notes = split.target(args, source, searched=is_folder)
    content = read_coco(path)
    masks = _has_masks(content)
    parts, notes = _read_parts(args, sources, content, masks)
    if not masks:
        notes.append("the annotations have boxes but no masks, so the recipe trains DINO")
    for other in [] if is_folder else neighbours(path):
        notes.append(f"{other} is not used; give {quoted(path.parent.parent)} to use all splits")
    prepare(args, name, out, path, parts, content, [*name_notes, *notes])


def _read_parts(
    args: argparse.Namespace,
    sources: dict[str, tuple[Path, Path]],
    content: dict[str, list[Any]],
    masks: bool,
) -> tuple[dict[str, Part], list[str]]:
    """Read and check all splits, and report the faults of all of them together."""
    parts, notes, problems = {}, [], []
    for part, (path, images) in sources.items():
        read = content if part == "train" else read_coco(path)
        try:
            parts[part], found = read_part(
                path, read, images, masks, args.max_annotations, args.max_pixels
            )
            notes += found
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    for part in parts.keys() - {"train"}:
        check_categories(parts["train"].file, parts[part].file)
    return parts, notes


def _has_masks(content: dict[str, list[Any]]) -> bool:
    """Whether any annotation has a mask."""
    return any(isinstance(a, dict) and a.get("segmentation") for a in content["annotations"])


def _find_files(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Annotation file and image folder of each split that is given or found."""
    for option, folder in (("--images", args.images), ("--val-images", args.val_images)):
        if folder is not None and not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"The folder {folder} of {option} {state}.")
    if not args.annotations.is_dir():
        for path in filter(None, (args.annotations, args.val_annotations)):
            if not path.is_file():
                raise UserError(f"The annotation file {path} does not exist.")
        images = args.images or find_images(args.annotations, args.annotations.parent)
        sources = {"train": (args.annotations, images)}
        if args.val_annotations:
            val = args.val_images or args.images
            val = val or find_images(args.val_annotations, args.val_annotations.parent)
            sources["val"] = (args.val_annotations, val)
        return sources
    if args.val_annotations or args.val_images:
        raise UserError(
            "--val-annotations and --val-images go with an annotation file; the splits of the "
            f"folder {args.annotations} are found by their names."
        )
    found = find_annotations(args.annotations)
    return {
        part: (path, args.images or find_images(path, args.annotations))
        for part, path in found.items()
    }
