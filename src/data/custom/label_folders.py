"""Folders of images and of their labels, which ``from-folder`` would take for two classes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from src.data.custom.coco_layout import looks_like_coco
from src.data.custom.pairs import IMAGE_FOLDERS, LABEL_FOLDERS
from src.data.formats.image_files import is_image, list_class_folders, list_images
from src.errors import UserError
from src.file_names import quoted

_LOOKED_AT = 100  # files of labels that are compared with the images
_SHARE = 0.5  # of them, from which on they are labels of the images


def refuse_label_folders(source: Path, folder: Path) -> None:
    """Refuse folders such as ``images`` and ``labels`` whose files have the same names.

    Folders of these names whose files are named differently are classes.

    Args:
        source: The dataset, for the command that reads it.
        folder: Holds the class folders: the dataset or its training split.

    Raises:
        UserError: If a folder holds label maps, YOLO label files or COCO annotations of the images
            of another one; the message has the command for them.
    """
    names = list_class_folders(folder)
    shown = [folder / name for name in names if name.lower() in IMAGE_FOLDERS]
    labels = [folder / name for name in names if name.lower() in LABEL_FOLDERS]
    for images, label_folder in itertools.product(shown, labels):
        if (found := _kind_of_labels(images, label_folder)) is not None:
            kind, command, given = found
            raise UserError(
                f"{folder} holds the folders {images.name} and {label_folder.name}, and"
                f" {label_folder.name} has {kind} of the images; use `python -m src prepare"
                f" {command} {quoted(given or source)}`. If both are classes, rename one of them."
            )


def _kind_of_labels(images: Path, labels: Path) -> tuple[str, str, Path | None] | None:
    """What the labels are, the command that reads them, and its argument if not the dataset."""
    files = list(itertools.islice(_files(labels), _LOOKED_AT))
    named = {Path(path).stem for path in list_images(images)}
    if _are_of(named, [path for path in files if is_image(path)]):
        return "label maps", "from-masks", None
    if _are_of(named, [path for path in files if path.suffix.lower() == ".txt"]):
        return "YOLO label files", "from-yolo", None
    if named and not any(map(is_image, files)) and (file := looks_like_coco(labels)) is not None:
        return "COCO annotations", "from-coco", file
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("[!.]*") if path.is_file())


def _are_of(named: set[str], labels: list[Path]) -> bool:
    """Whether most labels have the name of an image, or begin with it: ``1_mask`` for ``1``."""
    found = sum(not named.isdisjoint(_heads(path.stem)) for path in labels)
    return found > _SHARE * len(labels)


def _heads(stem: str) -> list[str]:
    return [stem, *(stem[: match.start()] for match in re.finditer(r"[-_.]", stem))]
