"""Check images and annotations as the data modules of detection read them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from src.data.formats.image_sizes import is_transposed, read_sizes
from src.data.verify.layout import DataModuleLayout
from src.data.verify.report import Report
from src.errors import UserError, agreed, counted

if TYPE_CHECKING:
    from src.data.formats.coco_json import CocoFile


class BoxLayout(DataModuleLayout):
    """A layout of boxes: annotations are read, and the size of every image."""

    def check_split(
        self, report: Report, module: Any, split: str, args: argparse.Namespace
    ) -> None:
        """Check the annotations and the sizes of the images of a split."""
        file: CocoFile = module.annotation_file(split)
        _describe(report, file)
        _check_images(report, file, module, split, args.max_pixels)


def _describe(report: Report, file: CocoFile) -> None:
    counts = file.objects_of_class
    used = sum(1 for count in counts.values() if count)
    report.facts.append(
        f"{file.path}: {len(file.images)} images, {int(file.num_annotations.sum())} annotations, "
        f"{file.num_usable} of them for training, {used} classes occur"
    )
    report.notes += [
        f"{file.path}: {counted(count, 'annotation')} {agreed(count, 'is', 'are')} left out of"
        f" training because of {reason}"
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
        elif image.size != size and not (
            # Annotations may ignore the orientation.
            image.size == size[::-1] and is_transposed(path, max_pixels)
        ):
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
