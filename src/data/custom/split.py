"""Split images into training and validation, and write the folder of the result.

Only a folder that was made by these commands (it holds ``prepared.json``) is ever replaced, and in
it only the parts that are written again.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src import files
from src.decoding import MAX_PIXELS
from src.errors import MALFORMED_CONTENT, UserError, counted
from src.file_names import check_name, name_of, quoted

RECORD = "prepared.json"
_UNNAMED = ("images", "image", "imgs", "img")
"""Folder names that say nothing of a dataset: it gets the name of the folder around them."""
DEFAULT_PARENT = Path("data/own")
_LARGER_SHARES = (0.3, 0.4, 0.5)
_FEW = 1000  # images that can be divided several times in a moment
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def add_arguments(parser: argparse.ArgumentParser, *, places_files: bool) -> None:
    """Declare the arguments that the commands share.

    Args:
        parser: The parser of a command.
        places_files: Whether the command links or copies images into the output folder.
    """
    add = parser.add_argument
    add("--out", type=Path, help=f"output folder (default: {DEFAULT_PARENT}/<name>)")
    add(
        "--name",
        help="name of the recipe and its runs (default: name of the source folder, with _ in place "
        "of spaces)",
    )
    add(
        "--val-share",
        type=float,
        default=0.2,
        help="fraction of the images for validation (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the random split (%(default)s)")
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="refuse larger images, width times height (%(default)s)",
    )
    if places_files:
        add(
            "--mode",
            choices=sorted(_PLACE),
            default="symlink",
            help="how images are placed in the output folder (%(default)s)",
        )


def columns(parts: Iterable[str]) -> str:
    """Heading of numbers of each split: ``training + validation``."""
    return " + ".join(_PARTS[part] for part in parts)


def image_counts(numbers: Mapping[str, int]) -> str:
    """Number of images of each split: ``8 training, 2 validation and 1 test image``.

    Args:
        numbers: Number of images by split, of two splits or more.
    """
    *first, last = (part for part in _PARTS if part in numbers)
    listed = ", ".join(f"{numbers[part]} {_PARTS[part]}" for part in first)
    return f"{listed} and {counted(numbers[last], f'{_PARTS[last]} image')}"


def target(
    args: argparse.Namespace, source: Path, *, searched: bool = True
) -> tuple[str, Path, list[str]]:
    """Name of the dataset and the folder to make.

    Args:
        args: What `add_arguments` declares.
        source: Folder of the data.
        searched: Whether files are found by searching the source, so that nothing may be written
            into it.

    Returns:
        The name, the folder, and notes for the user.

    Raises:
        UserError: If the share is out of range, or the folder holds something else.
    """
    if not 0 < args.val_share < 1:
        raise UserError(f"--val-share accepts a share between 0 and 1, got {args.val_share}.")
    notes = []
    if args.name is None:
        folder = _dataset_folder(source).name
        name = name_of([re.sub(r"\s+", "_", folder)], "mine")
        if name != folder:
            notes.append(f"the name is {name}, from the folder {folder!r}; --name gives another")
    else:
        name = check_name(args.name, "--name")
    out = Path(args.out) if args.out else DEFAULT_PARENT / name
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out} is the source itself, which is never changed; name another.")
    if searched and out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"--out {out} is inside the source {source}, so the next run would read it as data; "
            "name a folder elsewhere."
        )
    if out.exists() and not (out / RECORD).is_file() and (out.is_file() or not _is_empty(out)):
        raise UserError(
            f"{out} exists and was not made by this command, so it is left alone; name another "
            "folder with --out."
        )
    return name, out, notes


def _dataset_folder(source: Path) -> Path:
    """The folder whose name is that of the dataset: ``photos`` for ``photos/images`` too."""
    folder = source.resolve()
    return folder.parent if folder.name.lower() in _UNNAMED else folder


def _made_from(out: Path) -> Path | None:
    """The source that a folder was made from; None if there is no such folder.

    Raises:
        UserError: If the record in the folder is damaged.
    """
    if not (out / RECORD).is_file():
        return None
    try:
        return Path(json.loads((out / RECORD).read_bytes())["source"])
    except MALFORMED_CONTENT as error:
        raise UserError(
            f"{out / RECORD}, which says what {out} was made from, is damaged, so nothing was "
            f"written; give another --name, or delete {out}."
        ) from error


@contextmanager
def start_over(
    args: argparse.Namespace, out: Path, parts: Sequence[str], facts: dict[str, Any]
) -> Iterator[Path]:
    """Yield a folder to fill, which replaces ``parts`` of ``out`` when the block succeeds.

    Args:
        args: What `add_arguments` declares.
        out: The folder to make, or one made before, which is not changed until then.
        parts: Names of the subfolders that are replaced.
        facts: What the folder is made from, for ``prepared.json``.

    Yields:
        An empty folder.

    Raises:
        UserError: If the folder was made from other data, or its record is damaged.
    """
    made_from = _made_from(out)
    source = Path(facts["source"])
    if made_from is not None and _dataset_folder(made_from) != _dataset_folder(source):
        raise UserError(
            f"{out} was made from {made_from}, so nothing was written."
            f" {_advice_on_name(args, out, source)}, or delete {out}."
        )
    with files.whole_folder(out, last=[RECORD], parts=parts) as work:
        yield work
        files.write_json(work / RECORD, facts, ensure_ascii=False, indent=1)


def _advice_on_name(args: argparse.Namespace, out: Path, source: Path) -> str:
    """Which option puts a dataset into another folder than one that is taken."""
    stem = name_of([re.sub(r"\s+", "_", _dataset_folder(source).stem)], "mine")
    names = [stem, *(f"{out.name}_{number}" for number in range(2, 100))]
    free = next((out.with_name(name) for name in names if not out.with_name(name).exists()), out)
    if args.out:
        return f"Give another folder, such as --out {quoted(free)}"
    option = f"--name {quoted(free.name)}"
    if args.name:
        return f"Give another name, such as {option}"
    return f"The name is that of the folder of the images unless you give one, such as {option}"


def _is_empty(folder: Path) -> bool:
    return all(files.is_leftover(entry) for entry in folder.iterdir())


def split(items: Sequence[str], val_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split at random, with a fixed seed.

    Args:
        items: At least two names.
        val_share: Share of the validation part.
        seed: Seed of the split.

    Returns:
        Training and validation part, each with at least one name, in the given order.
    """
    if len(items) < 2:
        raise ValueError(f"{len(items)} items cannot be divided into two parts")
    number = min(max(1, round(val_share * len(items))), len(items) - 1)
    chosen = set(random.Random(seed).sample(range(len(items)), number))
    first = [item for i, item in enumerate(items) if i not in chosen]
    return first, [item for i, item in enumerate(items) if i in chosen]


def split_by_class(
    items: Sequence[str], classes: Sequence[Collection[int]], val_share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Split images of several classes each, so that each class has its share in both parts.

    Source: iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data",
    2011). The rarest class is divided first; each of its images goes to the part that lacks most of
    the class. The sizes of the parts are those of `split`.

    Args:
        items: At least two names.
        classes: Classes of each item; it may have none.
        val_share: Share of the validation part.
        seed: Seed of the split.

    Returns:
        Training and validation part, each with at least one name, in the given order.
    """
    room = [len(part) for part in split(items, val_share, seed)]
    free = list(range(len(items)))
    random.Random(seed).shuffle(free)
    of_class: dict[int, list[int]] = {}
    for index in free:
        for label in classes[index]:
            of_class.setdefault(label, []).append(index)
    shares = (1 - val_share, val_share)
    lacking = {
        label: [share * len(members) for share in shares] for label, members in of_class.items()
    }
    chosen: dict[int, int] = {}  # 0 is training, 1 is validation

    def assign(index: int, wants: Sequence[float]) -> None:
        part = max((0, 1), key=lambda part: (room[part] > 0, wants[part]))
        chosen[index] = part
        room[part] -= 1
        for label in classes[index]:
            lacking[label][part] -= 1

    while of_class := {
        label: left
        for label, members in of_class.items()
        if (left := [index for index in members if index not in chosen])
    }:
        rarest = min(of_class, key=lambda label: (len(of_class[label]), label))
        for index in of_class[rarest]:
            assign(index, lacking[rarest])
    for index in free:
        if index not in chosen:
            assign(index, room)
    return (
        [item for i, item in enumerate(items) if chosen[i] == 0],
        [item for i, item in enumerate(items) if chosen[i] == 1],
    )


def advice_on_share(classes: Sequence[Collection[int]], val_share: float, seed: int) -> str:
    """What helps if classes have no validation image, for the end of a note about them.

    Args:
        classes: Classes of each image that was divided.
        val_share: Share of the validation part.
        seed: Seed of the split.

    Returns:
        The larger ``--val-share``, up to one half, with which most classes are in both parts, or
        advice to add images; empty for many images, of which other splits would take long.
    """
    if len(classes) > _FEW:
        return ""

    def measured(share: float) -> int:
        parts = split_by_class(list(map(str, range(len(classes)))), classes, share, seed)
        seen = [{label for item in part for label in classes[int(item)]} for part in parts]
        return len(seen[0] & seen[1])

    shares = [val_share, *(share for share in _LARGER_SHARES if share > val_share)]
    best = max(shares, key=measured)
    if best == val_share:
        return "; add images of them"
    return f"; --val-share {best} measures more of them"


def place(source: Path, destination: Path, mode: str) -> None:
    """Link or copy a file.

    Raises:
        UserError: If the file system does not allow it.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        _PLACE[mode](source, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise UserError(
            f"{source} cannot be put into the new folder by {mode}: {error.strerror}. Try another "
            "--mode, for example copy."
        ) from error


def _symlink(source: Path, destination: Path) -> None:
    destination.symlink_to(source.resolve())


_PLACE: dict[str, Callable[[Path, Path], Any]] = {
    "symlink": _symlink,
    "hardlink": lambda source, destination: destination.hardlink_to(source),
    "copy": shutil.copyfile,
}
