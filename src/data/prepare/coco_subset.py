"""A small part of a COCO annotation file, to overfit a few images."""

from __future__ import annotations

import argparse
from pathlib import Path

from src import files
from src.data.formats.coco_json import CocoFile, read_coco
from src.errors import UserError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare coco-subset``."""
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO annotation file")
    add("--out", type=Path, required=True, help="annotation file to write")
    # --pictures is its former name.
    add("--images", "--pictures", type=int, default=16, help="number of images (%(default)s)")
    add("--max-objects", type=int, help="skip images with more objects")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the annotation file and print its number of objects."""
    count = write_subset(args.annotations, args.out, args.images, args.max_objects)
    print(f"{args.out}: {counted(args.images, 'image')} with {counted(count, 'object')}")


def write_subset(source: Path, target: Path, images: int, max_objects: int | None = None) -> int:
    """Write an annotation file with the first images that have objects.

    Args:
        source: Annotation file to take them from.
        target: Annotation file to write; the images stay where they are.
        images: Number of images.
        max_objects: Leave out images with more annotations than this.

    Returns:
        Number of annotations written.

    Raises:
        UserError: If the file is broken or has too few such images, or the target is the source.
    """
    if images < 1:
        raise UserError(f"coco-subset: expected at least 1 image, got {images}.")
    if source.resolve() == target.resolve():
        raise UserError(f"The subset would replace its source {source}; choose another --out.")
    content = read_coco(source)
    CocoFile(source, content=content)  # raises if anything is wrong with it
    by_image: dict[int, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        image
        for image in content["images"]
        if 0 < len(by_image.get(image["id"], [])) <= (max_objects or len(content["annotations"]))
        and not any(a.get("iscrowd") for a in by_image[image["id"]])
    ][:images]
    if len(chosen) < images:
        raise UserError(
            f"{source} has only {counted(len(chosen), 'image')} with objects and without crowds"
            f"{f', at most {max_objects} objects each' if max_objects else ''}; asked for "
            f"{images}."
        )
    kept = [a for image in chosen for a in by_image[image["id"]]]
    files.write_json(target, content | {"images": chosen, "annotations": kept})
    return len(kept)
