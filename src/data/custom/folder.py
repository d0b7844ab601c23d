"""``prepare from-folder``: images in one folder per class.

Either ``FOLDER/<class>/*``, of which a part is used for validation, or ``FOLDER/<split>/<class>/*``
with splits of any usual name (``train``, ``valid``, ``Testing``), which are used as they are.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.custom import recipe, split
from src.data.custom.coco_layout import looks_like_coco
from src.data.custom.layout import Layout, find_layout
from src.data.custom.survey import survey
from src.data.formats.image_files import is_image, list_class_folders, list_images
from src.data.formats.splits import SPLITS
from src.data.verify.imagenet import verify_imagenet
from src.errors import UserError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder", type=Path, help="contains <class>/*, or train/<class>/* and val/<class>/*"
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
    name, out = split.target(args, source)
    try:
        layout = find_layout(source)
        classes = _classes(layout.splits.get("train", layout.root))
    except UserError as error:
        if (file := looks_like_coco(source)) is None:
            raise
        given = shlex.quote(str(file))
        raise UserError(
            f"{error} {file} is a COCO annotation file; use `python -m src prepare from-coco"
            f" {given}`."
        ) from error
    splits = layout.splits
    folders = splits.values() or [layout.root]
    paths = [path for folder in folders for path in list_images(folder)]
    found = survey(paths, args.max_pixels, _problems(layout))
    is_split = "val" in splits
    facts: dict[str, object] = {"source": str(source)}
    if not is_split:
        facts = {"source": str(splits.get("train", layout.root))}
        facts |= {"val_share": args.val_share, "seed": args.seed}
    with split.start_over(out, () if is_split else SPLITS, facts) as work:
        if is_split:
            data: dict[str, Any] = {"root": str(layout.root)}
            data |= {
                f"{part}_split": folder.name
                for part, folder in splits.items()
                if folder.name != part
            }
        else:
            _divide(layout, work, args)
            data = {"root": str(out)}
            splits = {part: work / part for part in SPLITS if (work / part).is_dir()}
        if "test" in splits:
            data["test_split"] = splits["test"].name
        number = _report(data["root"], splits, classes)
        print(f"Checked: {found}")
        for note in layout.notes:
            print(f"note: {note}")
        _report_nested(source, classes)
        _report_other_files(source)
        path = out / f"{name}.yaml"
        unseen = Path(data["root"]) / splits["val"].name
        data["upright"] = True
        recipe.write(args, path, "classification", data, number, work, unseen)


def _report(root: str, splits: dict[str, Path], classes: list[str]) -> int:
    """Print the number of images per class and split; returns the number for training."""
    counts = {
        part: {label: len(list_images(folder / label)) for label in list_class_folders(folder)}
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
            folder = shlex.quote(str(source / label))
            print(
                f"note: {label} has no images itself, but folders ({', '.join(inner[:3])}"
                f"{', ...' * (len(inner) > 3)}); if these are the classes, give {folder}"
            )


def _report_other_files(source: Path) -> None:
    others = Counter(path.suffix.lower() or path.name for path in _other_files(source))
    if others:
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
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


def _other_files(source: Path) -> Iterator[Path]:
    files = (path for path in source.rglob("*") if path.is_file())
    return (p for p in files if not is_image(p) and not p.name.startswith("."))


def _problems(layout: Layout) -> list[str]:
    """Class folders that are empty, have too few images to divide, or are in one split only."""
    divided = "val" not in layout.splits
    names = [folder.name for folder in layout.splits.values()]
    compared = names if len(names) > 1 else []
    problems = verify_imagenet(layout.root, compared).problems
    source = layout.splits.get("train", layout.root)
    for label in list_class_folders(source) if divided else ():
        number = len(list_images(source / label))
        if number == 1 or (number == 0 and not compared):
            problems.append(
                f"The class {label!r} in {source} has {'one image' if number else 'no images'}; at"
                " least two are needed, one for training and one for validation."
            )
    return problems


def _divide(layout: Layout, work: Path, args: argparse.Namespace) -> None:
    """Use a part of the training images for validation, and keep a test split."""
    source = layout.splits.get("train", layout.root)
    for label in list_class_folders(source):
        divided = split.split(list_images(source / label), args.val_share, args.seed)
        for part, images in zip(SPLITS, divided, strict=False):
            for image in map(Path, images):
                inside = image.relative_to(source / label)
                split.place(image, work / part / label / inside, args.mode)
    if "test" in layout.splits:
        for image in map(Path, list_images(layout.splits["test"])):
            inside = image.relative_to(layout.splits["test"])
            split.place(image, work / "test" / inside, args.mode)
