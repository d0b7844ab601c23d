"""A small part of a COCO annotation file, to try things on a few pictures."""

from __future__ import annotations

from pathlib import Path

from src import files
from src.data.formats.coco_json import CocoFile, read_coco
from src.errors import UserError


def write_subset(source: Path, target: Path, pictures: int, max_objects: int | None = None) -> int:
    """Write an annotation file with the first pictures that have objects.

    Args:
        source: Annotation file to take them from.
        target: Annotation file to write; the pictures stay where they are.
        pictures: How many to take.
        max_objects: Leave out pictures with more annotations than this.

    Returns:
        Number of annotations written.

    Raises:
        UserError: If the file is broken or has too few such pictures, or the target exists and is
            the source.
    """
    if pictures < 1:
        raise UserError(f"coco-subset takes at least 1 picture, got {pictures}.")
    if source.resolve() == target.resolve():
        raise UserError(f"The subset would replace its source {source}; choose another --out.")
    content = read_coco(source)
    CocoFile(source, content=content)  # says what is wrong with it, if anything
    by_picture: dict[int, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        by_picture.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        picture
        for picture in content["images"]
        if 0
        < len(by_picture.get(picture["id"], []))
        <= (max_objects or len(content["annotations"]))
        and not any(a.get("iscrowd") for a in by_picture[picture["id"]])
    ][:pictures]
    if len(chosen) < pictures:
        raise UserError(
            f"{source} has only {len(chosen)} pictures with objects and without crowds"
            f"{f', at most {max_objects} objects each' if max_objects else ''}; asked for "
            f"{pictures}."
        )
    kept = [a for picture in chosen for a in by_picture[picture["id"]]]
    files.write_json(target, content | {"images": chosen, "annotations": kept})
    return len(kept)
