"""``prepare from-folder``: pictures sorted into one folder per class.

Either ``FOLDER/<class>/*``, of which a part is kept for validation, or ``FOLDER/{train,val}/
<class>/*``, which is used as it is.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from src.data.own import recipe, split
from src.data.own.survey import survey
from src.data.pictures import is_picture, list_class_folders, list_pictures
from src.data.verify import verify_imagenet
from src.errors import UserError

_SPLITS = ("train", "val")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="holds <class>/*, or train/ and val/ of these")
    split.add_arguments(parser)
    recipe.add_arguments(parser, "classification")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, split, write the recipe and tell what to do next.

    Raises:
        UserError: If the folder is not laid out as expected, a picture is broken, or a class has
            too few pictures.
    """
    source: Path = args.folder
    if not source.is_dir():
        raise UserError(f"The folder {source} does not exist. Expected is {source}/<class>/*.jpg.")
    name, out = split.target(args, source)
    is_split = all((source / part).is_dir() for part in _SPLITS)
    root = source if is_split else out
    classes = _classes(source / "train" if is_split else source)
    found = survey(list_pictures(source))
    if is_split:
        _check(source)
        split.start_over(out, (), {"source": str(source)})
    else:
        _divide(source, out, args)
    counts = {
        part: {label: len(list_pictures(root / part / label)) for label in _labels(root / part)}
        for part in _SPLITS
    }
    number = {part: sum(counts[part].values()) for part in _SPLITS}
    print(f"{root}: {number['train']} training and {number['val']} validation pictures")
    for label in classes:
        print(f"  {label}: {counts['train'].get(label, 0)} + {counts['val'].get(label, 0)}")
    print(f"Checked: {found}")
    others = Counter(path.suffix.lower() or path.name for path in _other_files(source))
    if others:
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
        print(f"note: files that are no pictures by their endings are left out ({listed})")
    data = {"root": str(root), "upright": True}
    recipe.write(args, out / f"{name}.yaml", "classification", data, number["train"])


def _classes(folder: Path) -> list[str]:
    classes = list_class_folders(folder)
    loose = [path for path in folder.iterdir() if path.is_file()]
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} class folders ({', '.join(classes) or 'none'}) and "
            f"{len(loose)} files beside them; expected are at least two folders of pictures, each "
            "named as its class."
        )
    return classes


def _other_files(source: Path) -> Iterator[Path]:
    files = (path for path in source.rglob("*") if path.is_file())
    return (p for p in files if not is_picture(p) and not p.name.startswith("."))


def _labels(folder: Path) -> list[str]:
    return list_class_folders(folder)


def _check(source: Path) -> None:
    problems = verify_imagenet(source).problems
    if problems:
        raise UserError("\n  ".join(problems))


def _divide(source: Path, out: Path, args: argparse.Namespace) -> None:
    parts = {}
    for label in list_class_folders(source):
        pictures = list_pictures(source / label)
        if len(pictures) < 2:
            raise UserError(
                f"The class {label!r} in {source} has {len(pictures)} pictures; at least two are "
                "needed, one to learn from and one to check with."
            )
        parts[label] = split.split(pictures, args.val_share, args.seed)
    facts = {"source": str(source), "val_share": args.val_share, "seed": args.seed}
    split.start_over(out, _SPLITS, facts)
    for label, divided in parts.items():
        for part, pictures in zip(_SPLITS, divided, strict=True):
            for picture in map(Path, pictures):
                inside = picture.relative_to(source / label)
                split.place(picture, out / part / label / inside, args.mode)
