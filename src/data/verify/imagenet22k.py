"""Check the list files of ImageNet-22k, as `ImageNet22kDataModule` reads them, and their images."""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from src.data.classes.imagenet22k import FALL_2011, label_set, map_labels
from src.data.formats.image_lists import read_list
from src.data.verify.report import Report
from src.decoding import BrokenImageError, decode
from src.errors import UserError

TREE = "ROOT/*.txt with lines `path TAB class`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``verify imagenet22k``."""
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/imagenet22k"), help="data folder (%(default)s)")
    add(
        "--lists",
        nargs="+",
        default=[f"ILSVRC2011fall_whole_map_{split}.txt" for split in ("train", "val")],
        help="list files under ROOT",
    )
    add("--classes", default=FALL_2011, help="label set, as data.classes (%(default)s)")
    add("--list-classes", default=None, help="label set of the lists (default: --classes)")
    add("--decode", action="store_true", help="also decode every image")


def run(args: argparse.Namespace) -> Report:
    """Check the lists that the arguments name.

    Args:
        args: What `add_arguments` declares, ``workers`` and ``max_pixels``.
    """
    report = Report()
    synsets = label_set(args.classes)
    listed = synsets if args.list_classes is None else label_set(args.list_classes)
    labels = map_labels(listed, synsets)
    for name in args.lists:
        try:
            found = read_list(args.root / name, labels, listed)
        except UserError as error:
            report.problems.append(str(error))
            continue
        report.facts.append(
            f"{args.root / name}: {len(found.files)} images, {len(set(found.labels))} of"
            f" {len(synsets)} classes occur"
        )
        if found.left_out:
            report.notes.append(f"{found.left_out} images of {name} are of other classes.")
        check = partial(_problem, decode_it=args.decode, max_pixels=args.max_pixels)
        paths = (args.root / file for file in found.files)
        with ThreadPool(max(1, args.workers)) as pool:  # PIL and the system release the GIL
            report.problems += [text for text in pool.imap(check, paths, 64) if text]
    return report


def _problem(path: Path, decode_it: bool, max_pixels: int) -> str:
    if not path.is_file():
        return f"The image {path} does not exist."
    try:
        if decode_it:
            decode(str(path), max_pixels=max_pixels)
    except BrokenImageError as error:
        return str(error)
    return ""
