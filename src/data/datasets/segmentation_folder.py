"""Pictures and label maps of the same names in two folders: ADEChallengeData2016, or any like it.

Plain PyTorch data sets: no Lightning, no sampling. Labels of pixels are class indices; 255 counts
nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.label_maps import read_label_map
from src.data.pictures import list_pictures
from src.data.transforms.protocols import PairTransform, ViewsTransform
from src.decoding import decode
from src.errors import UserError
from src.types import IGNORE_LABEL


class TrainSample(TypedDict):
    """One picture to learn from; see `src.types.SegmentationBatch`."""

    image: Tensor
    label: Tensor
    path: str


class EvalSample(TypedDict):
    """One picture to segment; see `src.types.SegmentationEvalBatch`."""

    views: list[Tensor]
    size: tuple[int, int]
    label: NotRequired[Tensor]
    path: str


def find_pairs(
    images: Path, labels: Path, image_suffix: str | None = None, label_suffix: str = ".png"
) -> list[tuple[str, str]]:
    """Match every picture of a folder with its label map.

    Args:
        images: Folder of pictures, searched at any depth.
        labels: Folder of label maps, in the same subfolders.
        image_suffix: End of the picture names, such as ``_leftImg8bit.png``; pictures without it
            are left out. Default: any picture, without its file ending.
        label_suffix: What replaces it in the name of the label map.

    Returns:
        Paths of pictures and label maps, sorted by picture.

    Raises:
        UserError: If a folder or a label map is missing, two pictures share one, or there are no
            pictures.
    """
    for folder, what in ((images, "pictures"), (labels, "label maps")):
        if not folder.is_dir():
            raise UserError(
                f"The folder of {what} {folder} does not exist; check data.root and the folder "
                "names (data.train_images, data.train_labels, data.val_images, data.val_labels)."
            )
    pictures = list_pictures(images)
    if image_suffix is not None:
        pictures = [path for path in pictures if path.endswith(image_suffix)]
    if not pictures:
        ending = f" ending in {image_suffix}" if image_suffix else ""
        raise UserError(f"The folder {images} holds no pictures{ending}.")
    pairs = [
        (
            path,
            str(labels / _label_name(Path(path).relative_to(images), image_suffix, label_suffix)),
        )
        for path in pictures
    ]
    owner: dict[str, str] = {}
    for path, label in pairs:
        if owner.setdefault(label, path) != path:
            raise UserError(
                f"The pictures {owner[label]} and {path} share the label map {label}; give them "
                "different names."
            )
    missing = [pair for pair in pairs if not Path(pair[1]).is_file()]
    if missing:
        picture, label = missing[0]
        raise UserError(
            f"{len(missing)} of {len(pairs)} pictures in {images} have no label map; the first is "
            f"{picture}, whose label map should be {label}."
        )
    return pairs


def _label_name(picture: Path, image_suffix: str | None, label_suffix: str) -> Path:
    if image_suffix is None:
        return picture.with_name(picture.stem + label_suffix)
    return picture.with_name(picture.name.removesuffix(image_suffix) + label_suffix)


class _Pairs:
    """Reading of pictures with their label maps."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        num_classes: int,
        *,
        reduce_zero_label: bool,
        class_values: Sequence[int] | None,
        upright: bool,
    ) -> None:
        # Arrays instead of lists, which the loader's processes would copy bit by bit.
        self._images, self._labels = (np.array(paths) for paths in zip(*pairs, strict=True))
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.class_values = class_values
        self.upright = upright

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Picture ``(H, W, 3)``, labels ``(H, W)``, both uint8, and the file of the picture."""
        path, label_path = str(self._images[index]), str(self._labels[index])
        image = np.asarray(decode(path, upright=self.upright))
        label = read_label_map(
            label_path,
            self.num_classes,
            reduce_zero_label=self.reduce_zero_label,
            class_values=self.class_values,
        )
        if image.shape[:2] != label.shape:
            (height, width), (label_height, label_width) = image.shape[:2], label.shape
            raise UserError(
                f"The picture {path} is {width}x{height} pixels, but its label map {label_path} is "
                f"{label_width}x{label_height}; they must have the same size (data.upright turns "
                "pictures as their EXIF block says)."
            )
        return image, label, path


class SegmentationTrainDataset(_Pairs, Dataset[TrainSample]):
    """Pictures and labels, transformed together at random.

    Args:
        pairs: Files of pictures and label maps, see `find_pairs`.
        transform: Random transform of a pair.
        num_classes: Number of classes.
        reduce_zero_label: Whether the files count classes from 1.
        class_values: Number of each class in the files, if they are not counted.
        upright: Turn pictures as their EXIF block says.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        transform: PairTransform,
        num_classes: int,
        *,
        reduce_zero_label: bool,
        class_values: Sequence[int] | None = None,
        upright: bool = False,
    ) -> None:
        super().__init__(
            pairs,
            num_classes,
            reduce_zero_label=reduce_zero_label,
            class_values=class_values,
            upright=upright,
        )
        self.transform = transform

    def __getitem__(self, index: int) -> TrainSample:
        """Read and transform one pair; PyTorch's seed decides what is random.

        Raises:
            UserError: If a file is broken, or picture and label map do not fit.
        """
        image, label, path = self.read(index)
        seed = int(torch.randint(2**31, ()))
        tensor, target = self.transform(image, label, seed)
        return {"image": tensor, "label": target, "path": path}


class SegmentationEvalDataset(_Pairs, Dataset[EvalSample]):
    """Pictures prepared for evaluation, and their labels at the size of the file.

    An index beyond the end gives the same picture as from the beginning, but with all labels
    ignored: processes that have one picture fewer than others fill up with these.

    Args:
        pairs: Files of pictures and label maps, see `find_pairs`.
        transform: Preparation of a picture.
        num_classes: Number of classes.
        reduce_zero_label: Whether the files count classes from 1.
        class_values: Number of each class in the files, if they are not counted.
        upright: Turn pictures as their EXIF block says.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        transform: ViewsTransform,
        num_classes: int,
        *,
        reduce_zero_label: bool,
        class_values: Sequence[int] | None = None,
        upright: bool = False,
    ) -> None:
        super().__init__(
            pairs,
            num_classes,
            reduce_zero_label=reduce_zero_label,
            class_values=class_values,
            upright=upright,
        )
        self.transform = transform

    def __getitem__(self, index: int) -> EvalSample:
        """Read and prepare one pair.

        Raises:
            UserError: If a file is broken, or picture and label map do not fit.
        """
        image, label, path = self.read(index % len(self))
        if index >= len(self):
            label = np.full_like(label, IGNORE_LABEL)
        return {
            "views": self.transform(image),
            "size": (image.shape[0], image.shape[1]),
            "label": torch.from_numpy(label.astype(np.int64)),
            "path": path,
        }


class SegmentationFilesDataset(Dataset[EvalSample]):
    """Pictures without labels.

    Args:
        files: The pictures.
        transform: Preparation of a picture.
        upright: Turn pictures as their EXIF block says.
    """

    def __init__(
        self, files: Sequence[str], transform: ViewsTransform, *, upright: bool = False
    ) -> None:
        self._files = np.array(files)
        self.transform = transform
        self.upright = upright

    @property
    def paths(self) -> list[str]:
        """The files in their order."""
        return [str(path) for path in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> EvalSample:
        """Read and prepare one picture.

        Raises:
            UserError: If the file is broken.
        """
        path = str(self._files[index])
        image = np.asarray(decode(path, upright=self.upright))
        return {
            "views": self.transform(image),
            "size": (image.shape[0], image.shape[1]),
            "path": path,
        }
