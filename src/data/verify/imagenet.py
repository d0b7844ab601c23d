"""Check class folders before hours of training depend on them.

The check counts images and names what the data module would refuse: missing folders, empty classes,
classes that only one split has, and on request every file that cannot be decoded. It changes
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from src.data.formats.image_files import list_class_folders, list_images
from src.decoding import MAX_PIXELS, BrokenImageError, decode


@dataclass
class Report:
    """What was found.

    Attributes:
        counts: Images by split and class folder.
        problems: One sentence each; empty if all is well.
        notes: What may be meant, such as a split that lacks a class.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_imagenet(
    root: Path,
    splits: Sequence[str] = ("train", "val"),
    decode_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Check class folders.

    Args:
        root: Folder that holds the splits.
        splits: Their names; the first one's classes are the labels.
        decode_workers: Threads that decode all images; 0 leaves the files unread.
        max_pixels: Larger images are named as broken.
    """
    report = Report()
    if not root.is_dir():
        report.problems.append(
            f"The folder {root} does not exist. Give the folder that holds {' and '.join(splits)}."
        )
        return report
    images: list[str] = []
    for split in splits:
        images += _check_split(root / split, split, report)
    _compare(root, splits, report)
    if decode_workers:
        report.problems += _broken(images, decode_workers, max_pixels)
    return report


def _check_split(folder: Path, split: str, report: Report) -> list[str]:
    if not folder.is_dir():
        report.problems.append(
            f"The folder {folder} does not exist. Expected is {folder}/<class>/*.jpg."
        )
        return []
    classes = list_class_folders(folder)
    if not classes:
        report.problems.append(
            f"The folder {folder} has no class folders. Expected is {folder}/<class>/*.jpg."
        )
    images: list[str] = []
    report.counts[split] = {}
    for name in classes:
        found = list_images(folder / name)
        report.counts[split][name] = len(found)
        if not found:
            report.problems.append(
                f"The class folder {folder / name} holds no images. Fill or remove it."
            )
        images += found
    return images


def _compare(root: Path, splits: Sequence[str], report: Report) -> None:
    """Classes that the first split lacks have no label; the reverse only makes a smaller test."""
    found = [split for split in splits if report.counts.get(split)]
    if not found:
        return
    first, *others = found
    labels = set(report.counts[first])
    for split in others:
        classes = set(report.counts[split])
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
    with ThreadPool(max(1, workers)) as pool:  # PIL decodes outside Python's lock
        results = pool.imap(partial(_decode_error, max_pixels=max_pixels), images, chunksize=16)
        return [sentence for sentence in _progress(results, len(images)) if sentence]


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
