"""Sort the flat ILSVRC2012 validation images into the class folders that the data module reads.

Labels are read from any of the public lists: lines of file name and class index (as in Caffe's and
the official InternImage list) or synset, the Kaggle solution table, or the devkit's ground truth,
whose numbers have the devkit's own order and need its ``meta.mat``. Indices and synsets are those
of timm's ``ImageNetInfo``.
"""

from __future__ import annotations

import argparse
import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from src import files
from src.data.classes.class_names import imagenet_synsets
from src.errors import UserError, agreed, counted
from src.file_names import quoted

Mode = Literal["symlink", "hardlink", "copy", "move"]

_SYNSET = re.compile(r"n\d{8}")
_FORMATS = (
    "expected lines `ILSVRC2012_val_00000001.JPEG 65` (or a synset instead of the index), "
    "LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt with meta.mat beside it"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare imagenet-val``."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of ILSVRC2012_val_*.JPEG")
    add(
        "--labels",
        type=Path,
        required=True,
        help="lines `ILSVRC2012_val_00000001.JPEG 65` (index or synset), LOC_val_solution.csv, or "
        "the devkit's ILSVRC2012_validation_ground_truth.txt with meta.mat beside it",
    )
    add("--root", type=Path, default=Path("data/imagenet"), help="writes ROOT/val (%(default)s)")
    add(
        "--mode",
        choices=list(_PLACE),
        default="symlink",
        help="how images are placed in the class folders (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Sort the images and print how many were placed."""
    target = args.root / "val"
    placed, before = arrange_val(args.images, read_val_labels(args.labels), target, args.mode)
    was = agreed(before, "was", "were")
    images = counted(placed, "image")
    print(f"{target}: {images} placed by {args.mode}, {before} {was} there before")
    print(f"check with `python -m src verify imagenet --root {quoted(args.root)}`")


def read_val_labels(path: Path) -> dict[str, str]:
    """Synset of every validation image.

    Args:
        path: A label list; see the module's docstring for the formats.

    Returns:
        Synset by file stem (``ILSVRC2012_val_00000001``).

    Raises:
        UserError: If the file is missing or in no known format.
    """
    if not path.is_file():
        raise UserError(f"The label file {path} does not exist; {_FORMATS}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The label file {path} is not UTF-8 text; {_FORMATS}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"The label file {path} is empty; {_FORMATS}.")
    if all(line.isdecimal() for line in lines):
        return _devkit_labels(path, [int(line) for line in lines])
    synsets = imagenet_synsets()
    return dict(
        _label(path, number, line, synsets)
        for number, line in enumerate(lines, 1)
        if not _is_header(line)
    )


def _is_header(line: str) -> bool:
    return line.startswith("ImageId,")


def _label(path: Path, number: int, line: str, synsets: Sequence[str]) -> tuple[str, str]:
    """File stem and synset of ``name index``, ``name synset`` or ``name,synset x y x y``."""
    fields = line.replace(",", " ").split()
    if len(fields) >= 2:
        stem, label = Path(fields[0]).stem, fields[1]
        if label.isdecimal() and int(label) < len(synsets):
            return stem, synsets[int(label)]
        if _SYNSET.fullmatch(label):
            return stem, label
    raise UserError(
        f"Line {number} of {path} is not a label: {line!r}; {_FORMATS}. Indices run from 0 to "
        f"{len(synsets) - 1}."
    )


def _devkit_labels(path: Path, numbers: list[int]) -> dict[str, str]:
    """Labels of the devkit: one number per image, 1 to 1000, in the order of ``meta.mat``."""
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise UserError(
            f"{path} holds only numbers, as the devkit's ground truth does, which need the "
            f"devkit's meta.mat in the same folder, but {meta} does not exist. Keep both files "
            "together as in ILSVRC2012_devkit_t12/data."
        )
    from scipy.io import loadmat  # here, because only the devkit's file needs it

    try:
        rows = loadmat(str(meta), squeeze_me=True)["synsets"]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(
            f"{meta} is not the devkit's meta.mat ({type(error).__name__}: {error}); take it from "
            "ILSVRC2012_devkit_t12/data."
        ) from error
    unknown = next((number for number in numbers if number not in synset_of), None)
    if unknown is not None:
        raise UserError(
            f"{path} holds the number {unknown}, which {meta} does not list; take both files from "
            "the same devkit."
        )
    strange = next((synset for synset in synset_of.values() if not _SYNSET.fullmatch(synset)), None)
    if strange is not None:
        raise UserError(f"{meta} names the class {strange!r}; expected synsets such as n01440764.")
    return {f"ILSVRC2012_val_{i:08d}": synset_of[number] for i, number in enumerate(numbers, 1)}


def arrange_val(
    images: Path, labels: dict[str, str], target: Path, mode: Mode = "symlink"
) -> tuple[int, int]:
    """Put every image of a flat folder into ``target/<synset>/``; existing files are kept.

    Args:
        images: Folder of ``ILSVRC2012_val_*.JPEG``.
        labels: Synset by file stem, as `read_val_labels` gives it.
        target: Folder to fill, for example ``data/imagenet/val``.
        mode: How an image is put there.

    Returns:
        Number of images placed now, and of those that were there before.

    Raises:
        UserError: If the folder is missing or holds none of the images, or an image has no
            label.
    """
    if not images.is_dir():
        raise UserError(
            f"The folder {images} does not exist. Give the folder with the flat "
            "ILSVRC2012_val_*.JPEG files."
        )
    found = sorted(
        path
        for path in images.iterdir()
        if path.name.startswith("ILSVRC2012_val_") and path.is_file()
    )
    if not found and not _count(target):
        raise UserError(
            f"The folder {images} contains no ILSVRC2012_val_*.JPEG files. Give the folder that "
            "contains them."
        )
    unlabelled = next((path for path in found if path.stem not in labels), None)
    if unlabelled is not None:
        raise UserError(
            f"{unlabelled} has no label in the label file. Give the list of all 50,000 validation "
            "images."
        )
    place = _PLACE[mode]
    placed = 0
    for path in found:
        destination = target / labels[path.stem] / path.name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not destination.exists():
            destination.unlink(missing_ok=True)  # a broken symbolic link
            try:
                place(path, destination)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
                    raise files.NotWrittenError(destination, error) from error
                raise UserError(
                    f"{path} cannot be put at {destination} by {mode}: {error.strerror}. "
                    "Try another --mode, for example copy."
                ) from error
            placed += 1
    return placed, _count(target) - placed


def _count(target: Path) -> int:
    return sum(1 for _ in target.glob("*/ILSVRC2012_val_*"))


def _symlink(source: Path, destination: Path) -> None:
    destination.symlink_to(source.resolve())


def _hardlink(source: Path, destination: Path) -> None:
    destination.hardlink_to(source)


def _move(source: Path, destination: Path) -> None:
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another disk
            raise
        files.copy(source, destination)
        source.unlink()


_PLACE: dict[Mode, Callable[[Path, Path], Any]] = {
    "symlink": _symlink,
    "hardlink": _hardlink,
    "copy": files.copy,
    "move": _move,
}
