"""Check the files of iNaturalist 2018, as `INaturalistDataModule` reads them."""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from src.data.formats.inaturalist import INaturalistSplit, read_split
from src.data.verify.report import Report
from src.decoding import BrokenImageError, decode
from src.errors import UserError

TREE = "ROOT/{train,val}2018{,_locations}.json and the images they name"
_FILES = {split: (f"{split}2018.json", f"{split}2018_locations.json") for split in ("train", "val")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``verify inaturalist``."""
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/inat2018"), help="data folder (%(default)s)")
    add(
        "--splits",
        nargs="+",
        default=list(_FILES),
        choices=list(_FILES),
        help="splits to check (train val)",
    )
    add("--decode", action="store_true", help="also decode every image")


def run(args: argparse.Namespace) -> Report:
    """Check the folder that the arguments name.

    Args:
        args: What `add_arguments` declares, ``workers`` and ``max_pixels``.
    """
    report = Report()
    classes: dict[str, list[str]] = {}
    for split in args.splits:
        annotations, locations = (args.root / name for name in _FILES[split])
        try:
            content = read_split(annotations, locations)
        except UserError as error:
            report.problems.append(str(error))
            continue
        classes[split] = content.class_names
        paths = [args.root / file for file in content.files]
        _describe(report, annotations, content)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            report.problems.append(
                f"{len(missing)} of {len(paths)} images of {annotations} do not exist, the first is"
                f" {missing[0]}."
            )
        elif args.decode:
            with ThreadPool(max(1, args.workers)) as pool:  # PIL releases the GIL
                found = pool.imap(partial(_problem, max_pixels=args.max_pixels), paths, 16)
                report.problems += [problem for problem in found if problem]
    if len({tuple(names) for names in classes.values()}) > 1:
        report.problems.append(
            "The splits have other categories, or in another order, so their labels differ: "
            + ", ".join(f"{split} has {len(names)}" for split, names in classes.items())
            + "."
        )
    return report


def _describe(report: Report, annotations: Path, content: INaturalistSplit) -> None:
    count = len(content.files)
    report.facts.append(
        f"{annotations}: {count} images, {len(set(content.labels))} of"
        f" {len(content.class_names)} classes occur"
    )
    for number, what in ((content.without_date, "date"), (content.without_place, "place")):
        if number:
            report.notes.append(f"{number} of {count} images of {annotations} have no {what}.")


def _problem(path: Path, max_pixels: int) -> str:
    try:
        decode(str(path), max_pixels=max_pixels)
    except BrokenImageError as error:
        return str(error)
    return ""
