"""Which pictures are for learning and which for checking, and the folder that is made of them.

Only a folder that was made here before (it holds ``prepared.json``) is ever replaced, and of it
only the parts that are made again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.decoding import MAX_PIXELS
from src.errors import UserError

RECORD = "prepared.json"
DEFAULT_PARENT = Path("data/own")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the three commands share."""
    add = parser.add_argument
    add("--out", type=Path, help=f"folder to make ({DEFAULT_PARENT}/<name>)")
    add("--name", help="name of the recipe and of its runs (name of the source folder)")
    add(
        "--val-share",
        type=float,
        default=0.2,
        help="share of the pictures that is kept for validation (%(default)s)",
    )
    add("--seed", type=int, default=0, help="another one, another split (%(default)s)")
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="refuse larger images, width times height (%(default)s)",
    )
    add(
        "--mode",
        choices=sorted(_PLACE),
        default="symlink",
        help="how pictures get into the folder (%(default)s)",
    )


def target(args: argparse.Namespace, source: Path, *, searched: bool = True) -> tuple[str, Path]:
    """Name of the dataset and the folder to make.

    Args:
        args: What `add_arguments` declares.
        source: Folder that the data come from.
        searched: Whether its files are found by looking through it, so that nothing may be made in
            it.

    Raises:
        UserError: If the share is out of range, or the folder holds something else.
    """
    if not 0 < args.val_share < 1:
        raise UserError(f"--val-share accepts a share between 0 and 1, got {args.val_share}.")
    name = args.name or source.resolve().name
    if not args.name:
        name = re.sub(r"\s+", "_", name) or "mine"
    if "/" in name or name in (".", ".."):
        raise UserError(f"--name accepts a file name without folders, got {name!r}.")
    out = Path(args.out) if args.out else DEFAULT_PARENT / name
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out} is the source itself, which is never changed; name another.")
    if searched and out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"--out {out} lies in the source {source}, so the next run would take it for data; "
            "name a folder elsewhere."
        )
    if out.exists() and not (out / RECORD).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and was not made by this command, so it is left alone; name another "
            "folder with --out."
        )
    return name, out


def start_over(out: Path, parts: Sequence[str], facts: dict[str, Any]) -> None:
    """Empty ``parts`` of a folder made before and note what it is made from."""
    try:
        for part in parts:
            if (out / part).is_dir():
                shutil.rmtree(out / part)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(facts, ensure_ascii=False, indent=1)
        (out / RECORD).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The folder {out} cannot be made: {error.strerror}. Name another with --out."
        ) from error


def split(items: Sequence[str], val_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide at random, the same way every time.

    Args:
        items: At least two names.
        val_share: Share of the second part.
        seed: Decides the division.

    Returns:
        Training and validation part, each with at least one name, in the order given.
    """
    if len(items) < 2:
        raise ValueError(f"{len(items)} items cannot be divided into two parts")
    number = min(max(1, round(val_share * len(items))), len(items) - 1)
    chosen = set(random.Random(seed).sample(range(len(items)), number))
    first = [item for i, item in enumerate(items) if i not in chosen]
    return first, [item for i, item in enumerate(items) if i in chosen]


def place(source: Path, destination: Path, mode: str) -> None:
    """Link or copy a file.

    Raises:
        UserError: If the file system does not allow it.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        _PLACE[mode](source, destination)
    except OSError as error:
        raise UserError(
            f"{source} cannot be put at {destination} by {mode}: {error.strerror}. Try another "
            "--mode, for example copy."
        ) from error


def _symlink(source: Path, destination: Path) -> None:
    destination.symlink_to(source.resolve())


_PLACE: dict[str, Callable[[Path, Path], Any]] = {
    "symlink": _symlink,
    "hardlink": lambda source, destination: destination.hardlink_to(source),
    "copy": shutil.copyfile,
}
