"""Find the classes that occur in label maps; one that never does may be numbered wrongly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool

import numpy as np

from src.data.datasets.segmentation_folder import SegmentationTrainDataset
from src.errors import UserError
from src.types import IGNORE_LABEL

_MOST = 1000
_CHUNK = 50


def find_occurring_classes(dataset: SegmentationTrainDataset) -> tuple[set[int], str, str]:
    """Read label maps until every class has occurred: up to a thousand, evenly spaced.

    Args:
        dataset: Images and label maps for training.

    Returns:
        Labels that occur; where the others do not, as it reads after "occur in"; and a sentence
        about the likely cause, if the numbers may be.

    Raises:
        UserError: If a label map is broken or has a value that is no class, or no label map has any
            class.
    """
    count = min(len(dataset), _MOST)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    present: set[int] = set()
    ignored = 0
    with ThreadPool(os.cpu_count() or 1) as pool:  # PIL releases the GIL while it decodes
        for start in range(0, count, _CHUNK):
            for labels, unlabelled in pool.map(
                lambda index: _classes_of(dataset, index), chosen[start : start + _CHUNK]
            ):
                present |= labels
                ignored += unlabelled
            if len(present) == dataset.num_classes:
                break
    ends_occur = {0, dataset.num_classes - 1} <= present  # so the numbers are not shifted
    hint = "" if ends_occur else _hint(dataset, ignored > 0)
    if not present and count == len(dataset):
        raise UserError(
            f"None of the {count} training label maps (the first is {dataset.label_path(0)}) shows "
            f"any class: every pixel is unlabelled.{hint}"
        )
    sample = "" if count == len(dataset) else f" that were read, of {len(dataset)},"
    return present, f"none of the {count} training label maps{sample}", hint


def _classes_of(dataset: SegmentationTrainDataset, index: int) -> tuple[set[int], bool]:
    try:
        found = set(np.unique(dataset.read_label(index)).tolist())
    except UserError:
        if dataset.broken_images == "error":
            raise
        return set(), False
    return found - {IGNORE_LABEL}, IGNORE_LABEL in found


def _hint(dataset: SegmentationTrainDataset, ignored: bool) -> str:
    if isinstance(dataset.class_values, Mapping):
        return " data.class_values gives the class of each number in the files."
    if dataset.class_values is not None:
        return f" data.class_values is {list(dataset.class_values)}: the number of each class."
    if dataset.reduce_zero_label:
        return (
            " data.reduce_zero_label is true: 0 is unlabelled and classes count from 1; set it to "
            "false if the files count from 0."
        )
    unlabelled = (
        " 255 is unlabelled; for black and white masks (0 and 255) make a recipe with `python -m "
        "src prepare from-masks`."
        if ignored
        else ""
    )
    return (
        " data.reduce_zero_label is false: classes count from 0; set it to true if 0 is "
        f"unlabelled.{unlabelled}"
    )
