"""Images in class folders (the ImageNet layout), and images to classify.

``readable.py`` handles images that cannot be decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from src.data.datasets.files_to_predict import FilesToPredict
from src.data.datasets.readable import (
    BLANK,
    MAX_BROKEN_IN_A_ROW,
    BrokenImages,
    ReadableImages,
)
from src.data.formats.image_files import LISTED_EXTENSIONS, list_class_folders, list_images
from src.data.formats.splits import split_of
from src.data.transforms.classification import Crop, TrainTransform
from src.decoding import MAX_PIXELS
from src.errors import UserError

Transform = Callable[[Image.Image], Tensor]


class Sample(TypedDict):
    """One image, uint8 ``(3, H, W)``, with its file and, if known, class index, date and place.

    ``is_padding`` marks a sample that is left out of metrics and outputs, see
    `src.data.samplers.padding`.
    """

    image: Tensor
    path: str
    label: NotRequired[int]
    temporal: NotRequired[NDArray[np.float32]]
    spatial: NotRequired[NDArray[np.float32]]
    is_padding: NotRequired[bool]


class LabelledImages(ReadableImages, Dataset[Sample]):
    """Images with one label each.

    Args:
        paths: Image files.
        labels: Class index of each.
        transform: From an RGB image to a tensor of shape ``(3, H, W)``. A `TrainTransform` draws
            its crop before an image is decoded.
        broken_images: ``"error"`` raises on the first file that cannot be decoded; ``"skip"`` uses
            the next image instead or, in evaluation, gives a padding sample.
        upright: Turn images as their EXIF block says.
        max_pixels: Larger images count as broken.
        train: Whether the images are for training.
        metadata: Arrays with a row per image, which samples have under the same names.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        transform: Transform,
        broken_images: BrokenImages = "error",
        *,
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
        train: bool = False,
        metadata: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        super().__init__(paths, broken_images, upright=upright, max_pixels=max_pixels)
        self.labels = np.array(labels, dtype=np.int64)
        self.metadata = dict(metadata or {})
        self.transform, self.train = transform, train

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        A broken image that is skipped is replaced by the next readable one in training; in
        evaluation the sample is padding, as is that of an index beyond the end.

        Raises:
            UserError: If the image is broken, or in skip mode if a long run of images is.
        """
        position = index % len(self)
        tries = min(len(self), MAX_BROKEN_IN_A_ROW if self.train else 1)
        for candidate in ((position + step) % len(self) for step in range(tries)):
            image = self._transformed(candidate)
            if image is not None:
                sample = self._sample(candidate, image)
                return {**sample, "is_padding": True} if index >= len(self) else sample
        if self.train:
            raise self.refuse_all(position, tries)
        blank = self.transform(Image.fromarray(BLANK))
        return {**self._sample(position, blank), "is_padding": True}

    def _transformed(self, index: int) -> Tensor | None:
        """The decoded and transformed image, or None if it cannot be decoded and is skipped."""
        transform = self.transform
        if not isinstance(transform, TrainTransform):
            image = self.open(index)
            return None if image is None else transform(image)
        crops: list[Crop] = []

        def reduction(width: int, height: int) -> int:
            crops.append(transform.draw(width, height))
            return crops[-1].reduction

        image = self.open(index, reduction)
        return None if image is None else transform(image, crops[-1])

    def _sample(self, index: int, image: Tensor) -> Sample:
        sample: Sample = {
            "image": image,
            "label": int(self.labels[index]),
            "path": self.path(index),
        }
        sample |= cast("Sample", {name: rows[index] for name, rows in self.metadata.items()})
        return sample


class ImageFilesDataset(FilesToPredict, Dataset[Sample]):
    """Images to classify; arguments are those of `FilesToPredict`."""

    transform: Transform

    def sample(self, image: Image.Image, index: int) -> Sample:
        """Image and path, without ``label``."""
        return {"image": self.transform(image), "path": self.path(index)}


def class_folder_files(
    root: str | Path, folders: Sequence[str] | None = None
) -> tuple[list[str], list[int]]:
    """Images of ``root/<class>/**`` and their labels, sorted by class folder and file name.

    Args:
        root: Folder of one split.
        folders: Class folders in label order; ``root`` may lack some of them. Default: the folders
            found, sorted.

    Raises:
        UserError: If the folder is missing, holds no classes, an unknown class or an empty class.
    """
    found = _class_folders(Path(root))
    label_of = {folder: label for label, folder in enumerate(found if folders is None else folders)}
    paths: list[str] = []
    labels: list[int] = []
    for folder in found:
        if folder not in label_of:
            raise UserError(
                f"The class folder {Path(root) / folder} has no label: the dataset's "
                f"{len(label_of)} classes do not include {folder!r}. Remove the folder, or add the "
                "class to the training split or to class_names."
            )
        images = list_images(Path(root) / folder)
        if not images:
            raise UserError(
                f"The class folder {Path(root) / folder} holds no images. "
                f"Add files ending in one of {LISTED_EXTENSIONS}, or remove the folder."
            )
        paths += images
        labels += [label_of[folder]] * len(images)
    return paths, labels


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(
            f"The folder {root} does not exist; expected one folder of images per class, "
            f"{root}/<class>/*.jpg. Check data.root{_other_name(root)}."
        )
    folders = list_class_folders(root)
    if not folders:
        raise UserError(
            f"The folder {root} has no class folders; expected one folder of images per class, "
            f"{root}/<class>/*.jpg."
        )
    return folders


def _other_name(root: Path) -> str:
    """How to set the split if its folder has another usual name; empty if there is none."""
    if not root.parent.is_dir() or (split := split_of(root.name)) is None:
        return ""
    names = [name for name in list_class_folders(root.parent) if split_of(name) == split]
    return f", or set data.{split}_split to {names[0]}" if names else ""
