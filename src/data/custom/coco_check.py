"""Check an annotation file against its images, and report faults of all kinds together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.data.custom.box_edges import check_edges
from src.data.custom.detection import Part
from src.data.custom.survey import Survey, look_at
from src.data.formats.coco_entries import (
    ImageEntry,
    check_annotation,
    check_categories,
    check_image,
)
from src.data.formats.coco_json import CocoFile
from src.data.formats.faults import Faults
from src.errors import UserError, agreed, counted

Content = dict[str, list[Any]]


def _sound(
    entries: Sequence[Any], check: Callable[[int, Any], object], faults: Faults
) -> list[Any]:
    """Entries that a check accepts; the faults of the others are noted."""
    kept = []
    for position, entry in enumerate(entries):
        with faults.noted():
            check(position, entry)
            kept.append(entry)
    return kept


def read_part(
    path: Path,
    content: Content,
    folder: Path,
    masks: bool,
    max_annotations: int,
    max_pixels: int,
) -> tuple[Part, list[str]]:
    """Read the annotations of a split, and decode its images.

    Args:
        path: The annotation file.
        content: What `read_coco` has read.
        folder: Folder that the file names start in.
        masks: Whether training leaves out annotations without a mask.
        max_annotations: Largest number of annotations of an image.
        max_pixels: Larger images count as broken.

    Returns:
        The split, and notes for the user.

    Raises:
        UserError: If entries are wrong, or images are missing, broken or of another size; the
            message has a line for each kind of fault.
    """
    survey, faulty, problems = _check_images(path, content["images"], folder, max_pixels)
    if faulty:  # so that their annotations are not called wrong, too
        content = _without(content, faulty)
    try:
        file = CocoFile(path, masks, None, max_annotations, content)
    except UserError as error:
        raise UserError("\n".join([*problems, *_faults_of(path, content, masks, error)])) from error
    if not problems and not any(file.num_annotations):
        problems = [f"{path} has no annotated images, so there is nothing to train on."]
    notes = []
    try:
        notes = check_edges(file, content["annotations"])
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return Part(file, folder, survey), notes


def _check_images(
    path: Path, entries: list[Any], folder: Path, max_pixels: int
) -> tuple[Survey, list[Any], list[str]]:
    """Compare the images with their entries.

    Returns:
        What was found in the images that exist, the entries that are wrong, and one message for
        each kind of fault.
    """
    faults = Faults("images with a wrong value", f"{path}: ")
    sound = _sound(entries, lambda _, e: check_image(e, path).path(folder, path), faults)
    images = [check_image(entry, path) for entry in sound]
    files = [str(image.path(folder, path)) for image in images]
    there = {file for file in files if Path(file).is_file()}
    missing = [file for file in files if file not in there]
    survey = look_at([file for file in files if file in there], max_pixels)
    other = [
        (image, file)
        for image, file in zip(images, files, strict=True)
        if file in survey.sizes and image.size not in (survey.sizes[file], survey.stored[file])
    ]
    problems = faults.lines()
    if missing:
        problems.append(_missing(path, folder, missing, len(files)))
    problems += survey.unreadable()
    if other:
        problems.append(_other_sizes(path, other, survey, len(files)))
    usable = survey.sizes.keys() - {file for _, file in other}
    right = {id(entry) for entry, file in zip(sound, files, strict=True) if file in usable}
    return survey, [entry for entry in entries if id(entry) not in right], problems


def _missing(path: Path, folder: Path, missing: list[str], total: int) -> str:
    return (
        f"{len(missing)} of {counted(total, 'image')} of {path}"
        f" {agreed(len(missing), 'is', 'are')} not in {folder}; the first is {missing[0]}."
        f"{_in_other_case(Path(missing[0]))} Check --images: file names in the json start from"
        " there."
    )


def _in_other_case(path: Path) -> str:
    """A sentence about a file that differs from a missing one by capital letters, if there is one.

    It begins with a space.
    """
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    name = path.name.lower()
    other = next((found.name for found in beside if found.name.lower() == name), None)
    return "" if other is None else f" There is {other}, with other capital letters."


def _other_sizes(
    path: Path, other: list[tuple[ImageEntry, str]], survey: Survey, total: int
) -> str:
    """Message about images whose size is neither that of the json, upright nor as stored."""
    image, first = other[0]
    height, width = survey.sizes[first]
    are_exchanged = all(image.size[::-1] == survey.sizes[file] for image, file in other)
    advice = "Exchange width and height" if are_exchanged else "Correct width and height"
    return (
        f"{len(other)} of {counted(total, 'image')} {agreed(len(other), 'has', 'have')} another"
        f" size than {path} says, so the annotations would be misplaced: it says"
        f" {image.size[1]}x{image.size[0]} (width x height) for {first}, and the image is"
        f" {width}x{height}. {advice} in the json, or give the images that were annotated."
    )


def _without(content: Content, faulty: list[Any]) -> Content:
    """The content without some images and their annotations."""
    ids = {e["id"] for e in faulty if isinstance(e, dict) and isinstance(e.get("id"), int | str)}
    dropped = set(map(id, faulty))
    return content | {
        "images": [entry for entry in content["images"] if id(entry) not in dropped],
        "annotations": [a for a in content["annotations"] if not _belongs_to(a, ids)],
    }


def _belongs_to(annotation: Any, ids: set[Any]) -> bool:
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return isinstance(number, int | str) and number in ids


def _faults_of(path: Path, content: Content, masks: bool, error: UserError) -> list[str]:
    """Messages about a refused file, one for each kind of fault.

    Annotations that can be used are read again for the warnings about boxes without an area or
    outside their image.
    """
    try:
        label_of = check_categories(content["categories"], path)
        sizes = {
            image.id: image.size for image in (check_image(e, path) for e in content["images"])
        }
    except UserError:
        return [str(error)]
    faults = Faults("annotations with a wrong value", f"{path}: ")
    sound = _sound(
        content["annotations"],
        lambda position, entry: check_annotation(
            entry, position, dict.fromkeys(label_of, 0), sizes, path
        ),
        faults,
    )
    if not faults.by_kind:
        return [str(error)]
    lines = faults.lines()
    try:
        CocoFile(path, masks, content=content | {"annotations": sound})
    except UserError as further:
        lines.append(str(further))
    return lines
