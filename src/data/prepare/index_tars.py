"""Build the index of image-text pairs in tars, which training needs (``prepare index-tars``).

The tars stay as they are (img2dataset, webdataset): jpg, png or webp beside txt or json. Run the
command again after an interruption, with further tars or with other filters; only new tars are
read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from src import files
from src.data.tars.build import BuildSettings, build
from src.data.tars.filters import Filters
from src.data.tars.index import TarIndex
from src.data.tars.names import find_tars
from src.data.tars.scan import Fields
from src.errors import UserError, agreed, counted

_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("tars", nargs="+", help="tars, folders, patterns ('{00000..00127}.tar'), paths or URLs")
    add("--out", type=Path, required=True, help="folder of the index")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    add("--text", default="", help="JSON field of the text (default: txt file, else 'caption')")
    add("--score", default="", help="JSON field of the score, such as 'similarity'")
    add("--unique", default="", help="JSON field that must not repeat, such as 'url' or 'key'")
    add("--min-side", type=int, default=0, help="smallest side of an image in pixels")
    add("--max-aspect", type=float, default=0.0, help="largest ratio of the sides of an image")
    add("--min-characters", type=int, default=0, help="shortest text")
    add("--max-characters", type=int, default=0, help="longest text")
    add("--min-score", type=float, help="smallest score (needs --score)")
    add("--skip-unreadable", action="store_true", help="leave out tars that cannot be opened")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: If there are no tars or pairs, a tar cannot be read, or a value is invalid.
    """
    if args.min_score is not None and not args.score:
        raise UserError("--min-score needs --score FIELD, the JSON field of the score.")
    if args.workers < 1:
        raise UserError(f"--workers accepts an integer of at least 1, got {args.workers}.")
    values = {entry.name: getattr(args, entry.name) for entry in fields(Filters)}
    settings = BuildSettings(
        Fields(args.text, args.score, args.unique),
        Filters(**{**values, "unique": bool(args.unique)}),
        args.workers,
        args.skip_unreadable,
    )
    index(args.out, args.tars, settings)


def index(out: Path, tars: Sequence[str], settings: BuildSettings | None = None) -> None:
    """Build the index of tars, and print what is in it.

    Args:
        out: Folder of the index.
        tars: Tars, folders, patterns; paths or URLs.
        settings: Fields, filters and number of processes.

    Raises:
        UserError: If there are no tars or pairs, or a tar cannot be read.
    """
    root, names = find_tars(tars, out)
    found, problems = build(
        out, root, names, settings or BuildSettings(), lambda line: print(line, flush=True)
    )
    _report(found, problems)
    if not len(found):
        raise UserError(
            f"The index in {out} has no pairs; see the counts above. A pair is an image (jpg, "
            "png, webp) and a txt or json member of the same name."
        )


def _report(found: TarIndex, problems: list[str]) -> None:
    out, count = found.folder, len(found.names)
    print(f"{out}: {len(found):,} pairs in {count:,} tar{'s' if count > 1 else ''}")
    for reason, count in sorted(found.left_out.items(), key=lambda entry: -entry[1]):
        print(f"  left out: {count:,} ({reason})")
    if problems:
        path = out / "problems.txt"
        files.write_text(path, "\n".join(problems) + "\n")
        for line in problems[:_SHOWN]:
            print(f"  {files.on_one_line(line)}")
        number = len(problems)
        are = agreed(number, "is", "are")
        print(f"  {counted(number, 'problem')} {are} listed in {path}")
