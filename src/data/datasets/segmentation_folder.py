"""Images and label maps of the same names in two folders, as in ADEChallengeData2016.

Plain PyTorch datasets: no Lightning, no sampling. Labels of pixels are class indices; 255 is
ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
import torch
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
from src.data.formats.image_files import list_images
from src.data.formats.label_maps import ClassValues, read_label_map
from src.data.transforms.protocols import PairTransform, ViewsTransform
from src.decoding import MAX_PIXELS, BrokenImageError
from src.errors import UserError
from src.types import IGNORE_LABEL

TransformT = TypeVar("TransformT", PairTransform, ViewsTransform)


class TrainSample(TypedDict):
    """One image for training; see `src.types.SegmentationBatch`."""

    image: Tensor
    label: Tensor
    size: Tensor
    path: str


class EvalSample(TypedDict):
    """One image to segment; see `src.types.SegmentationEvalBatch`."""

    views: list[Tensor]
    size: tuple[int, int]
    label: NotRequired[Tensor]
    weight: NotRequired[Tensor]
    path: str
    is_padding: NotRequired[bool]


def find_pairs(
    images: Path, labels: Path, image_suffix: str | None = None, label_suffix: str = ".png"
) -> list[tuple[str, str]]:
    """Match every image of a folder with its label map.

    Args:
        images: Folder of images, searched at any depth.
        labels: Folder of label maps, in the same subfolders.
        image_suffix: Suffix of the image files, such as ``_leftImg8bit.png``; others are left out.
            Default: the extension of any image.
        label_suffix: What replaces it in the name of the label map.

    Returns:
        Paths of images and label maps, sorted by image.

    Raises:
        UserError: If a folder or a label map is missing, two images share a label map, or there are
            no images.
    """
    for folder, what in ((images, "images"), (labels, "label maps")):
        if not folder.is_dir():
            raise UserError(
                f"The folder of {what} {folder} does not exist; check data.root and the folder "
                "names (data.train_images, data.train_labels, data.val_images, data.val_labels)."
            )
    image_files = list_images(images)
    if images.resolve() == labels.resolve() and image_suffix is None:
        image_files = [path for path in image_files if not path.endswith(label_suffix)]
    elif labels.resolve().is_relative_to(images.resolve()) and labels.resolve() != images.resolve():
        inner = set(list_images(labels))
        image_files = [path for path in image_files if path not in inner]
    if image_suffix is not None:
        image_files = [path for path in image_files if path.endswith(image_suffix)]
    if not image_files:
        ending = f" ending in {image_suffix}" if image_suffix else ""
        raise UserError(f"The folder {images} holds no images{ending}.")
    pairs = [
        (
            path,
            str(labels / _label_name(Path(path).relative_to(images), image_suffix, label_suffix)),
        )
        for path in image_files
    ]
    owner: dict[str, str] = {}
    for path, label in pairs:
        if owner.setdefault(label, path) != path:
            raise UserError(
                f"The images {owner[label]} and {path} share the label map {label}; give them "
                "different names."
            )
    _check_label_maps(pairs, images)
    return pairs


def listed_pairs(
    names: Path, images: Path, labels: Path, image_suffix: str = ".jpg", label_suffix: str = ".png"
) -> list[tuple[str, str]]:
    """Match the images that a text file lists with their label maps.

    Args:
        names: Text file with one name per line, without suffix.
        images: Folder of images.
        labels: Folder of label maps.
        image_suffix: Suffix of the image files.
        label_suffix: Suffix of the label maps.

    Returns:
        Paths of images and label maps, in the order of the list.

    Raises:
        UserError: If the list, an image or a label map is missing, or the list is empty or names a
            file outside the folder.
    """
    try:
        stems = [line.strip() for line in names.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list of images {names} cannot be read ({error}); expected a text file with one "
            "name per line (data.root, data.image_lists)."
        ) from error
    stems = [stem for stem in stems if stem]
    if not stems:
        raise UserError(f"The list of images {names} is empty; expected one name per line.")
    outside = [s for s in stems if Path(s).is_absolute() or ".." in Path(s).parts]
    if outside:
        raise UserError(
            f"The list of images {names} has the name {outside[0]!r}; expected names of files in "
            f"{images}, without suffix."
        )
    pairs = [(str(images / (s + image_suffix)), str(labels / (s + label_suffix))) for s in stems]
    absent = [image for image, _ in pairs if not Path(image).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(pairs)} images of the list {names} do not exist; the first is "
            f"{absent[0]}."
        )
    _check_label_maps(pairs, images)
    return pairs


def _check_label_maps(pairs: Sequence[tuple[str, str]], images: Path) -> None:
    missing = [pair for pair in pairs if not Path(pair[1]).is_file()]
    if missing:
        image, label = missing[0]
        raise UserError(
            f"{len(missing)} of {len(pairs)} images in {images} have no label map; the first is "
            f"{image}, whose label map should be {label}. "
            "data.image_suffix and data.label_suffix say how the names end, such as .jpg and "
            "_mask.png."
        )


def _label_name(image: Path, image_suffix: str | None, label_suffix: str) -> Path:
    if image_suffix is None:
        return image.with_name(image.stem + label_suffix)
    return image.with_name(image.name.removesuffix(image_suffix) + label_suffix)


class _Pairs(ReadableImages, Generic[TransformT]):
    """Images with their label maps.

    Args:
        pairs: Files of images and label maps, see `find_pairs`.
        transform: Transform of a pair, or preparation of an image.
        num_classes: Number of classes.
        reduce_zero_label: Whether the files count classes from 1.
        class_values: Number of each class in the files, or class of each number, if the numbers are
            not consecutive.
        upright: Turn images as their EXIF block says.
        broken_images: See `src.data.datamodules.base.BaseDataModule`.
        max_pixels: Larger images and label maps are refused.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        transform: TransformT,
        num_classes: int,
        *,
        reduce_zero_label: bool,
        class_values: ClassValues | None = None,
        upright: bool = False,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        images, labels = zip(*pairs, strict=True)
        super().__init__(images, broken_images, upright=upright, max_pixels=max_pixels)
        self._labels = np.array([os.fsencode(path) for path in labels], dtype=np.bytes_)
        self.transform: TransformT = transform
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.class_values = class_values

    def label_path(self, index: int) -> str:
        """File of one label map."""
        return os.fsdecode(self._labels[index])

    def read_label(self, index: int) -> np.ndarray:
        """Class of every pixel of a label map, uint8 ``(H, W)``.

        Raises:
            UserError: If the file is broken or has a value that is no class.
        """
        return read_label_map(
            self.label_path(index),
            self.num_classes,
            reduce_zero_label=self.reduce_zero_label,
            class_values=self.class_values,
            max_pixels=self.max_pixels,
        )

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image ``(H, W, 3)`` and labels ``(H, W)``, both uint8; None if one is broken and skipped.

        Raises:
            UserError: If a file is broken and not to be skipped, or their sizes differ.
        """
        path, label_path = self.path(index), self.label_path(index)
        opened = self.open(index)
        if opened is None:
            return None
        image = np.asarray(opened)
        try:
            label = self.read_label(index)
        except BrokenImageError as error:
            self.refuse_or_remember(index, error)
            return None
        if image.shape[:2] != label.shape:
            (height, width), (label_height, label_width) = image.shape[:2], label.shape
            raise UserError(
                f"The image {path} is {width}x{height} pixels, but its label map {label_path} is "
                f"{label_width}x{label_height}; they must have the same size (data.upright turns "
                "images as their EXIF block says)."
            )
        return image, label


class SegmentationTrainDataset(_Pairs[PairTransform], Dataset[TrainSample]):
    """Images and labels, transformed together at random; arguments are those of `_Pairs`."""

    def __getitem__(self, index: int) -> TrainSample:
        """Read and transform one pair; all randomness comes from PyTorch's seed.

        Raises:
            UserError: If a file is broken, or image and label map differ in size.
        """
        tries = min(len(self), MAX_BROKEN_IN_A_ROW)
        for candidate in ((index + step) % len(self) for step in range(tries)):
            pair = self.read(candidate)
            if pair is not None:
                seed = int(torch.randint(2**31, ()))
                tensor, target, size = self.transform(*pair, seed)
                return {
                    "image": tensor,
                    "label": target,
                    "size": torch.tensor(size),
                    "path": self.path(candidate),
                }
        raise self.refuse_all(index, tries)


class SegmentationEvalDataset(_Pairs[ViewsTransform], Dataset[EvalSample]):
    """Images prepared for evaluation, and their labels at the size of the file.

    An index beyond the end, and a broken image that is skipped, give a padding sample
    (`src.data.samplers.padding`), whose labels are all ignored. Arguments are those of `_Pairs`.
    """

    def __getitem__(self, index: int) -> EvalSample:
        """Read and prepare one pair.

        Raises:
            UserError: If a file is broken, or image and label map differ in size.
        """
        position = index % len(self)
        pair = self.read(position)
        image, label = pair or (BLANK, np.zeros(BLANK.shape[:2], np.uint8))
        is_padding = pair is None or index >= len(self)
        if is_padding:
            label = np.full_like(label, IGNORE_LABEL)
        sample: EvalSample = {
            "views": self.transform(image),
            "size": (image.shape[0], image.shape[1]),
            "label": torch.from_numpy(label.astype(np.int64)),
            "path": self.path(position),
        }
        return {**sample, "is_padding": True} if is_padding else sample


class SegmentationFilesDataset(FilesToPredict, Dataset[EvalSample]):
    """Images to segment; arguments are those of `FilesToPredict`."""

    transform: ViewsTransform

    def sample(self, image: Image.Image, index: int) -> EvalSample:
        """Views of an image with its size and path, without ``label``."""
        return {
            "views": self.transform(np.asarray(image)),
            "size": (image.height, image.width),
            "path": self.path(index),
        }


class SegmentationCollate:
    """Make a batch of images of different sizes, see `src.types.SegmentationEvalBatch`.

    Args:
        flipped: Which of the views are flipped horizontally.
    """

    def __init__(self, flipped: list[bool]) -> None:
        self.flipped = flipped

    def __call__(self, samples: Sequence[EvalSample]) -> dict[str, Any]:
        """One list per entry of the samples."""
        batch: dict[str, Any] = {"flipped": self.flipped}
        for key in samples[0]:
            batch[key] = [sample[key] for sample in samples]  # type: ignore[literal-required]
        return batch
