"""Check images and annotations as the data modules of detection read them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from src.data.formats.image_sizes import read_sizes
from src.data.verify.report import Report
from src.errors import UserError

if TYPE_CHECKING:
    from src.data.formats.coco_json import CocoFile


@dataclass(frozen=True)
class BoxLayout:
    """A layout of ``python -m src verify`` that a data module of boxes reads.

    Attributes:
        TREE: The files, for the help text.
        data_module: Name of the data module.
        root: Default folder.
        options: Further arguments of the data module that are options of the command, with those of
            ``argparse``.
        fixed: Further arguments of the data module.
    """

    TREE: str
    data_module: str
    root: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add = parser.add_argument
        add("--root", default=self.root, help="data folder (%(default)s)")
        splits = ["train", "val"]
        add("--splits", nargs="+", default=splits, choices=splits, help="default: both")
        for name, settings in self.options.items():
            add(f"--{name.replace('_', '-')}", **settings)

    def run(self, args: argparse.Namespace) -> Report:
        """Read the annotations, and the size of every image.

        Args:
            args: What `add_arguments` declares, ``workers`` and ``max_pixels``.
        """
        from src import data  # imported here, because data modules import Lightning, which is slow

        given = {name: getattr(args, name) for name in self.options}
        options = {name: value for name, value in given.items() if value is not None}
        module = getattr(data, self.data_module)(
            root=args.root, max_pixels=args.max_pixels, **self.fixed, **options
        )
        report = Report()
        for split in args.splits:
            try:
                file: CocoFile = module.annotation_file(split)
            except UserError as error:
                report.problems.append(str(error))
                continue
            _describe(report, file)
            _check_images(report, file, module, split, args.max_pixels)
        return report


def _describe(report: Report, file: CocoFile) -> None:
    counts = file.objects_of_class
    used = sum(1 for count in counts.values() if count)
    report.facts.append(
        f"{file.path}: {len(file.images)} images, {int(file.num_annotations.sum())} annotations, "
        f"{file.num_usable} of them for training, {used} classes occur"
    )
    report.notes += [
        f"{file.path}: {count} annotations are left out of training because of {reason}"
        for reason, count in file.left_out.items()
    ]
    absent = [name for label, name in enumerate(file.class_names) if not counts[label]]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        names = len(file.class_names)
        report.notes.append(f"{file.path}: {len(absent)} of {names} never occur: {shown}")


def _check_images(report: Report, file: CocoFile, module: Any, split: str, max_pixels: int) -> None:
    folder = module.root / module.splits[split][0]
    paths = [str(image.path(folder, file.path)) for image in file.images]
    sizes = read_sizes(paths, max_pixels)
    for image, path, size in zip(file.images, paths, sizes, strict=True):
        if isinstance(size, UserError):
            report.problems.append(str(size))
        elif image.size not in (size, size[::-1]):  # annotations may ignore the orientation
            report.problems.append(
                f"The image {path} is {size[1]}x{size[0]} pixels, but {file.path} says "
                f"{image.size[1]}x{image.size[0]}."
            )


def _file(help_text: str) -> dict[str, str]:
    return {"help": f"{help_text} (default: that of the data module)"}


_FILES = {
    "train_annotations": _file("annotation file of the training images"),
    "val_annotations": _file("annotation file of the validation images"),
}
_FOLDERS = {
    "train_images": _file("folder of training images"),
    "val_images": _file("folder of validation images"),
}
_SPLITS = {
    f"{split}_splits": _file(f"folders and lists of {split}") | {"nargs": "+"}
    for split in ("train", "val")
}

COCO = BoxLayout(
    "ROOT/{train2017,val2017}/*.jpg, annotations/instances_{train,val}2017.json",
    "COCODataModule",
    "data/coco",
    _FOLDERS | _FILES,
    {"masks": False},
)
LVIS = BoxLayout(
    "ROOT/{train2017,val2017}/*.jpg, annotations/lvis_v1_{train,val}.json",
    "LVISDataModule",
    "data/lvis_v1",
    _FOLDERS | _FILES,
    {"masks": False},
)
OPEN_IMAGES = BoxLayout(
    "ROOT/{train,validation}/*.jpg, annotations/*.csv, annotations/*.json",
    "OpenImagesDataModule",
    "data/OpenImages",
    _FOLDERS | _FILES,
)
VOC = BoxLayout(
    "ROOT/VOC2007/{JPEGImages,Annotations,ImageSets/Main}/*",
    "VOCDataModule",
    "data/VOCdevkit",
    _SPLITS,
)
CROWD_HUMAN = BoxLayout(
    "ROOT/Images/*.jpg, annotation_{train,val}.odgt",
    "CrowdHumanDataModule",
    "data/CrowdHuman",
    _FILES,
)
