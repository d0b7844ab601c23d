"""Check class folders, as `ImageNetDataModule` reads them, before hours of training.

The check counts images and names what the data module would refuse: missing folders, empty classes,
classes that only one split has, and, with ``--decode``, files that cannot be decoded. It does not
change files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from src.data.formats.image_files import list_class_folders, list_images
from src.data.verify.report import Report
from src.decoding import MAX_PIXELS, BrokenImageError, decode

TREE = "ROOT/{train,val}/<class>/*"
Counts = dict[str, dict[str, int]]  # images by split and class folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``verify imagenet``."""
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/imagenet"), help="data folder (%(default)s)")
    add("--splits", nargs="+", default=["train", "val"], help="folders to check (train val)")
    add("--decode", action="store_true", help="also decode every image")


def run(args: argparse.Namespace) -> Report:
    """Check the folder that the arguments name."""
    workers = args.workers if args.decode else 0
    return verify_imagenet(args.root, args.splits, workers, args.max_pixels)


def verify_imagenet(
    root: Path,
    splits: Sequence[str] = ("train", "val"),
    decode_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Check class folders.

    Args:
        root: Folder that holds the splits.
        splits: Their names; the classes of the first one are the labels.
        decode_workers: Threads that decode all images; 0 leaves the files unread.
        max_pixels: Larger images, width times height, are named as broken.
    """
    report = Report()
    if not root.is_dir():
        report.problems.append(
            f"The folder {root} does not exist. Give the folder that holds {' and '.join(splits)}."
        )
        return report
    counts: Counts = {}
    images: list[str] = []
    for split in splits:
        found = _images_of_split(root / split, report)
        counts[split] = {name: len(paths) for name, paths in found.items()}
        images += [path for paths in found.values() for path in paths]
        if found:
            numbers = counts[split].values()
            report.facts.append(
                f"{root / split}: {sum(numbers)} images in {len(numbers)} classes, {min(numbers)} "
                f"to {max(numbers)} each"
            )
    _compare(root, counts, report)
    if decode_workers:
        report.problems += _broken(images, decode_workers, max_pixels)
    return report


def _images_of_split(folder: Path, report: Report) -> dict[str, list[str]]:
    """Images by class folder."""
    if not folder.is_dir():
        report.problems.append(
            f"The folder {folder} does not exist; expected {folder}/<class>/*.jpg."
        )
        return {}
    classes = list_class_folders(folder)
    if not classes:
        report.problems.append(
            f"The folder {folder} has no class folders; expected {folder}/<class>/*.jpg."
        )
    images = {name: list_images(folder / name) for name in classes}
    report.problems += [
        f"The class folder {folder / name} holds no images. Fill or remove it."
        for name, found in images.items()
        if not found
    ]
    return images


def _compare(root: Path, counts: Counts, report: Report) -> None:
    """Compare the classes of the splits.

    A class that is missing from the first split has no label, which is a problem. One that is
    missing only from a later split is not evaluated.
    """
    found = [split for split, classes in counts.items() if classes]
    if not found:
        return
    first, *others = found
    labels = set(counts[first])
    for split in others:
        classes = set(counts[split])
        report.problems += [
            f"The class folder {root / split / name} has no counterpart in {root / first}. Remove "
            f"it, or add the class to {first}."
            for name in sorted(classes - labels)
        ]
        missing = sorted(labels - classes)
        if missing:
            report.notes.append(
                f"{split} lacks {len(missing)} of the {len(labels)} classes: {_some(missing)}."
            )


def _broken(images: Sequence[str], workers: int, max_pixels: int) -> list[str]:
    with ThreadPool(max(1, workers)) as pool:  # PIL releases the GIL while it decodes
        results = pool.imap(partial(_decode_error, max_pixels=max_pixels), images, chunksize=16)
        return [error for error in _progress(results, len(images)) if error]


def _decode_error(path: str, max_pixels: int) -> str | None:
    try:
        decode(path, max_pixels=max_pixels)
    except BrokenImageError as error:
        return str(error)
    return None


def _progress(results: Iterator[str | None], total: int) -> Iterator[str | None]:
    """Pass results on, counting them on the terminal if there is one."""
    shown = sys.stderr.isatty()
    for done, result in enumerate(results, 1):
        if shown and (done % 100 == 0 or done == total):
            print(
                f"\rdecoded {done} of {total}", end="\n" if done == total else "", file=sys.stderr
            )
        yield result


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
