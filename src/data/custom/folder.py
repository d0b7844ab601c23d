"""``prepare from-folder``: images in one folder per class.

Either ``FOLDER/<class>/*``, of which a part is used for validation, or ``FOLDER/<split>/<class>/*``
with splits of any usual name (``train``, ``valid``, ``Testing``), which are used as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from src.data.custom import recipe, split
from src.data.custom.coco_layout import looks_like_coco
from src.data.custom.label_folders import refuse_label_folders
from src.data.custom.layout import Layout, find_layout
from src.data.custom.survey import Survey, look_at
from src.data.formats.image_files import (
    is_image,
    list_class_folders,
    list_images,
    other_files,
)
from src.data.formats.splits import SPLITS
from src.data.verify.imagenet import verify_imagenet
from src.errors import UserError, agreed, counted
from src.file_names import quoted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder", type=Path, help="a folder of <class>/*, or of train/<class>/* and val/<class>/*"
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be read"
    )
    split.add_arguments(parser, places_files=True)
    recipe.add_arguments(parser, "classification")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, split, write the recipe and print the next commands.

    Raises:
        UserError: If the layout is not as expected, an image is broken, or a class has too few
            images.
    """
    source: Path = args.folder
    if not source.is_dir():
        state = "is a file" if source.exists() else "does not exist"
        raise UserError(f"The folder {source} {state}; expected folders <class>/*.jpg in it.")
    name, out, notes = split.target(args, source)
    try:
        layout = find_layout(source)
        labelled = layout.splits.get("train", layout.root)
        classes = _classes(labelled)
    except UserError as error:
        if (file := looks_like_coco(source)) is None:
            raise
        given = quoted(file)
        raise UserError(
            f"{error} {file} is a COCO annotation file; use `python -m src prepare from-coco"
            f" {given}`."
        ) from error
    refuse_label_folders(source, labelled)
    splits = layout.splits
    folders = splits.values() or [layout.root]
    paths = [path for folder in folders for path in list_images(folder)]
    found = look_at(paths, args.max_pixels)
    _refuse_problems(layout, found, skip_broken=args.skip_broken)
    is_split = "val" in splits
    facts: dict[str, object] = {"source": str(source)}
    if not is_split:
        facts = {"source": str(labelled)}
        facts |= {"val_share": args.val_share, "seed": args.seed}
    with split.start_over(args, out, () if is_split else SPLITS, facts) as work:
        if is_split:
            data: dict[str, Any] = {"root": str(layout.root)}
            data |= {
                f"{part}_split": folder.name
                for part, folder in splits.items()
                if folder.name != part
            }
        else:
            _divide(layout, found, work, args)
            data = {"root": str(out)}
            splits = {part: work / part for part in SPLITS if (work / part).is_dir()}
        if "test" in splits:
            data["test_split"] = splits["test"].name
        number = _report(data["root"], splits, classes, set(paths) - found.sizes.keys())
        print(f"Checked: {found}")
        if found.broken:
            number_broken = counted(len(found.broken), "image")
            are = agreed(len(found.broken), "is", "are")
            print(f"note: {number_broken} {are} left out (--skip-broken):{found.named()}")
        if found.broken and is_split:  # the folders still hold them
            data["broken_images"] = "skip"
        for note in [*notes, *layout.notes]:
            print(f"note: {note}")
        _report_nested(source, classes)
        _report_other_files(source)
        path = out / f"{name}.yaml"
        unseen = Path(data["root"]) / splits["val"].name
        data["upright"] = True
        recipe.write(args, path, "classification", data, number, work, unseen)


def _report(root: str, splits: dict[str, Path], classes: list[str], broken: set[str]) -> int:
    """Print the number of images per class and split; returns the number for training."""
    counts = {
        part: {
            label: len(set(list_images(folder / label)) - broken)
            for label in list_class_folders(folder)
        }
        for part, folder in splits.items()
    }
    number = {part: sum(counts[part].values()) for part in splits}
    print(f"{root}: {split.image_counts(number)}; by class ({split.columns(splits)}):")
    for label in classes:
        print(f"  {label}: " + " + ".join(str(counts[part].get(label, 0)) for part in splits))
    return number["train"]


def _report_nested(source: Path, classes: list[str]) -> None:
    """Name a class whose images are all in several folders inside it, which may be the classes."""
    for label in classes:
        inner = list_class_folders(source / label) if (source / label).is_dir() else []
        is_empty = not any(is_image(path) for path in (source / label).glob("*"))
        if len(inner) > 1 and is_empty:
            folder = quoted(source / label)
            print(
                f"note: {label} has no images itself, but folders ({', '.join(inner[:3])}"
                f"{', ...' * (len(inner) > 3)}); if these are the classes, give {folder}"
            )


def _report_other_files(source: Path) -> None:
    if listed := other_files(source):
        print(f"note: files without the extension of an image are left out ({listed})")


def _classes(folder: Path) -> list[str]:
    classes = list_class_folders(folder)
    loose = [path for path in folder.iterdir() if path.is_file()]
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {_found(classes, len(loose))}; expected at least two folders of images,"
            " each named after its class."
        )
    return classes


def _found(classes: list[str], files: int) -> str:
    loose = counted(files, "file")
    if not classes:
        return f"no class folders and {loose}"
    return f"{counted(len(classes), 'class folder')} ({', '.join(classes)}) and {loose} beside it"


def _refuse_problems(layout: Layout, found: Survey, *, skip_broken: bool) -> None:
    """Refuse broken images, and class folders that are empty, too small or in one split only.

    Raises:
        UserError: If there are such images or folders; the message has a line for each of them.
    """
    names = [folder.name for folder in layout.splits.values()]
    compared = names if len(names) > 1 else []
    problems = verify_imagenet(layout.root, compared).problems
    problems += _small_classes(layout, found, skip_broken=skip_broken, is_verified=bool(compared))
    if not skip_broken:
        problems += found.unreadable(advice=", or leave out such images with --skip-broken")
    if problems:
        raise UserError("\n".join(problems))


def _small_classes(
    layout: Layout, found: Survey, *, skip_broken: bool, is_verified: bool
) -> list[str]:
    """Messages about classes with too few images to divide them, or without a readable one."""
    source = layout.splits.get("train", layout.root)
    is_divided = "val" not in layout.splits
    problems = []
    for label in list_class_folders(source):
        images = list_images(source / label)
        if not images and is_verified:  # a problem that is known
            continue
        number = sum(path in found.sizes for path in images) if skip_broken else len(images)
        needed = "two are needed, one for training and one for validation"
        if number < (2 if is_divided else 1):
            some = "one image" if number else "no images"
            some += " that can be read" * (number < len(images))
            problems.append(
                f"The class {label!r} in {source} has {some};"
                f" at least {needed if is_divided else 'one is needed'}. Add images, or move the"
                " folder elsewhere to continue without this class."
            )
    return problems


def _divide(layout: Layout, found: Survey, work: Path, args: argparse.Namespace) -> None:
    """Use a part of the readable training images for validation, and keep a test split."""
    source = layout.splits.get("train", layout.root)
    for label in list_class_folders(source):
        readable = [path for path in list_images(source / label) if path in found.sizes]
        divided = split.split(readable, args.val_share, args.seed)
        for part, images in zip(SPLITS, divided, strict=False):
            for image in map(Path, images):
                inside = image.relative_to(source / label)
                split.place(image, work / part / label / inside, args.mode)
    if "test" in layout.splits:
        readable = [path for path in list_images(layout.splits["test"]) if path in found.sizes]
        for image in map(Path, readable):
            inside = image.relative_to(layout.splits["test"])
            split.place(image, work / "test" / inside, args.mode)
