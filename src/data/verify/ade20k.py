"""Check images and label maps in two folders, as `ADE20KDataModule` reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from src.data.classes.ade20k import ADE20K_NAMES
from src.data.classes.class_names import read_class_names
from src.data.verify.label_maps import PairCheck, check_pairs
from src.data.verify.report import Report
from src.errors import UserError

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
        first = int(not args.count_from_zero)
        names = read_class_names(args.class_names, keyword="ade20k", first=first)
    report = Report()
    for split in args.splits:
        try:
            pairs = _pairs(args.root, split)
        except UserError as error:
            report.problems.append(str(error))
            continue
        check = PairCheck(len(names), args.max_pixels, reduce_zero_label=not args.count_from_zero)
        check_pairs(report, f"{args.root}/*/{split}", pairs, names, check, args)
    return report


def _pairs(root: Path, split: str) -> list[tuple[str, str]]:
    # Imported here, because it brings torch, and `verify --help` does not need it.
    from src.data.datasets.segmentation_folder import find_pairs

    images, labels = _FOLDERS[split]
    return find_pairs(root / images, root / labels)
