"""Check images and label maps in two folders, as `ADE20KDataModule` reads them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from src.data.classes.ade20k import ADE20K_NAMES
from src.data.classes.class_names import read_class_names
from src.data.formats.label_maps import read_label_map
from src.data.verify.report import Report
from src.decoding import decode
from src.errors import UserError
from src.types import IGNORE_LABEL

TREE = "ROOT/{images,annotations}/{training,validation}/*"
_FOLDERS = {
    "training": ("images/training", "annotations/training"),
    "validation": ("images/validation", "annotations/validation"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``verify ade20k``."""
    add = parser.add_argument
    add(
        "--root",
        type=Path,
        default=Path("data/ADEChallengeData2016"),
        help="data folder (%(default)s)",
    )
    add(
        "--splits",
        nargs="+",
        default=list(_FOLDERS),
        choices=list(_FOLDERS),
        help="folders to check (default: both)",
    )
    add(
        "--class-names",
        default="ade20k",
        help="text file, one name per line (default: 150 of ADE20K)",
    )
    add(
        "--count-from-zero",
        action="store_true",
        help="0 is a class (data.reduce_zero_label false); default: 0 is unlabelled",
    )


def run(args: argparse.Namespace) -> Report:
    """Read every pair of files.

    Args:
        args: What `add_arguments` declares, ``workers`` and ``max_pixels``.
    """
    names = list(ADE20K_NAMES)
    if args.class_names != "ade20k":
        names = read_class_names(args.class_names, keyword="ade20k")
    report = Report()
    for split in args.splits:
        try:
            pairs = _pairs(args.root, split)
        except UserError as error:
            report.problems.append(str(error))
            continue
        present: Counter[int] = Counter()
        with ThreadPool(max(1, args.workers)) as pool:  # PIL releases the GIL while it decodes
            check = _Check(len(names), not args.count_from_zero, args.max_pixels)
            for classes, problem in pool.imap(check, pairs, chunksize=8):
                present.update(classes)
                report.problems += [problem] if problem else []
        report.facts.append(
            f"{args.root}/*/{split}: {len(pairs)} pairs, {len(present)} classes occur"
        )
        absent = [name for number, name in enumerate(names) if not present[number]]
        if absent:
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            report.notes.append(f"{split} never shows {len(absent)} of {len(names)}: {shown}")
    return report


def _pairs(root: Path, split: str) -> list[tuple[str, str]]:
    # Imported here, because it brings torch, and `verify --help` does not need it.
    from src.data.datasets.segmentation_folder import find_pairs

    images, labels = _FOLDERS[split]
    return find_pairs(root / images, root / labels)


class _Check:
    """Reads one pair: the classes in it, and what is wrong with it."""

    def __init__(self, num_classes: int, reduce_zero_label: bool, max_pixels: int) -> None:
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.max_pixels = max_pixels

    def __call__(self, pair: tuple[str, str]) -> tuple[set[int], str]:
        try:
            image = decode(pair[0], max_pixels=self.max_pixels)
            label = read_label_map(
                pair[1],
                self.num_classes,
                reduce_zero_label=self.reduce_zero_label,
                max_pixels=self.max_pixels,
            )
        except UserError as error:
            return set(), str(error)
        if (image.height, image.width) != label.shape:
            return set(), (
                f"The image {pair[0]} is {image.width}x{image.height} pixels, but its label map "
                f"{pair[1]} is {label.shape[1]}x{label.shape[0]}."
            )
        return set(_classes(label)), ""


def _classes(label: np.ndarray) -> Iterator[int]:
    return (int(number) for number in np.unique(label) if number != IGNORE_LABEL)
