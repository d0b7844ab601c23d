"""Check images and label maps as the data modules of segmentation read them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from src.data.formats.label_maps import read_label_map
from src.data.verify.layout import DataModuleLayout
from src.data.verify.report import Report
from src.decoding import decode
from src.errors import UserError
from src.types import IGNORE_LABEL


class LabelMapLayout(DataModuleLayout):
    """A layout of label maps: every pair of files is read."""

    def check_split(
        self, report: Report, module: Any, split: str, args: argparse.Namespace
    ) -> None:
        """Read every pair of files of a split."""
        pairs = module.labelled_files(split)
        check = PairCheck(
            len(module.class_names),
            args.max_pixels,
            reduce_zero_label=module.reduce_zero_label,
            class_values=module.label_values(split),
        )
        check_pairs(report, f"{args.root}, {split}", pairs, module.class_names, check, args)


def check_pairs(
    report: Report,
    title: str,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    check: PairCheck,
    args: argparse.Namespace,
) -> None:
    """Read pairs of files, and add what is found to a report.

    Args:
        report: Extended in place.
        title: What the pairs are.
        pairs: Image files and label maps.
        names: Class names in label order.
        check: Reads one pair.
        args: ``workers`` of the command.
    """
    present: Counter[int] = Counter()
    with ThreadPool(max(1, args.workers)) as pool:  # PIL releases the GIL while it decodes
        for classes, problem in pool.imap(check, pairs, chunksize=8):
            present.update(classes)
            report.problems += [problem] if problem else []
    report.facts.append(f"{title}: {len(pairs)} pairs, {len(present)} classes occur")
    absent = [name for number, name in enumerate(names) if not present[number]]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        report.notes.append(f"{title}: {len(absent)} of {len(names)} never occur: {shown}")


class PairCheck:
    """Reads one pair: the classes in it, and what is wrong with it.

    Args:
        num_classes: Number of classes.
        max_pixels: Larger files are refused.
        reading: How label maps are read, see `read_label_map`.
    """

    def __init__(self, num_classes: int, max_pixels: int, **reading: Any) -> None:
        self.num_classes = num_classes
        self.reading = reading | {"max_pixels": max_pixels}

    def __call__(self, pair: tuple[str, str]) -> tuple[set[int], str]:
        """The classes of a pair of files, and its problem or an empty text."""
        try:
            image = decode(pair[0], max_pixels=self.reading["max_pixels"])
            label = read_label_map(pair[1], self.num_classes, **self.reading)
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


_COARSE = {"choices": ["refined", "original"], "help": "also check these coarse label maps"}

CITYSCAPES = LabelMapLayout(
    "ROOT/{leftImg8bit,gtFine}/{train,val}/<city>/*",
    "CityscapesDataModule",
    "data/cityscapes",
    {"coarse": _COARSE},
)
MAPILLARY = LabelMapLayout(
    "ROOT/{training,validation}/{images,labels}/*, and Cityscapes for validation",
    "MapillaryDataModule",
    "data/Mapillary",
    {
        "cityscapes_root": {
            "default": "data/cityscapes",
            "help": "folder of Cityscapes (%(default)s)",
        },
        "high_values_are_road": {"action": "store_true", "help": "accept numbers above 65"},
    },
)
COCO_STUFF = LabelMapLayout(
    "ROOT/{images,annotations}/{train2017,val2017}/*",
    "COCOStuffDataModule",
    "data/coco_stuff164k",
    {"train_ids": {"action": "store_true", "help": "label maps are *_labelTrainIds.png"}},
)
PASCAL_CONTEXT = LabelMapLayout(
    "ROOT/{JPEGImages,SegmentationClassContext}/*, ROOT/ImageSets/SegmentationContext/*.txt",
    "PascalContextDataModule",
    "data/VOCdevkit/VOC2010",
)
NYU_DEPTH_V2 = LabelMapLayout(
    "ROOT/{image,label40}/*.png, ROOT/{train,test}.txt", "NYUDepthV2DataModule", "data/nyu_depth_v2"
)
