"""Images with COCO annotations, and images to detect in.

Plain PyTorch datasets: no Lightning, no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from src.data.datasets.files_to_predict import FilesToPredict
from src.data.datasets.readable import BLANK, BrokenImages, ReadableImages
from src.data.formats.coco_entries import Annotation, ImageEntry, shown
from src.data.formats.coco_json import (
    CocoFile,
    decode_mask,
    for_scoring,
    training_images,
)
from src.data.transforms.protocols import ImageTransform, InstanceTransform
from src.decoding import MAX_PIXELS, BrokenImageError, turn_upright
from src.errors import UserError
from src.types import DetectionTarget, ImageId, ImageLabels

_MAX_TRIES = 100
_MAX_MASKS = 64  # masks of the largest accepted image that must fit in memory


class Sample(TypedDict):
    """One image; see `src.types.DetectionBatch`."""

    image: Tensor
    size: tuple[int, int]
    original_size: tuple[int, int]
    image_id: ImageId
    path: str
    target: NotRequired[DetectionTarget]
    annotations: NotRequired[list[Annotation]]
    image_labels: NotRequired[ImageLabels]
    views: NotRequired[list[tuple[Tensor, bool]]]
    is_padding: NotRequired[bool]


class _CocoImages(ReadableImages):
    """Images of an annotation file."""

    def __init__(
        self,
        file: CocoFile,
        folder: str | Path,
        indices: Sequence[int],
        broken_images: BrokenImages,
        max_pixels: int,
    ) -> None:
        self.file = file
        self.folder = Path(folder)
        self._indices = np.array(indices, dtype=np.int64)
        if not len(self._indices):
            raise UserError(f"{file.path} has no image to use.")
        files = [str(file.images[i].path(self.folder, file.path)) for i in indices]
        super().__init__(files, broken_images, max_pixels=max_pixels)

    @cached_property
    def is_wide(self) -> NDArray[np.bool_]:
        """Whether each image is wider than high."""
        sizes = np.array([self.file.images[i].size for i in self._indices])
        return np.asarray(sizes[:, 1] > sizes[:, 0])

    @cached_property
    def images_of_classes(self) -> list[NDArray[np.int64]]:
        """Indices of the images with each class."""
        return self.file.images_of_classes(self._indices)

    def entry(self, index: int) -> ImageEntry:
        """Entry of the annotation file."""
        return self.file.images[self._indices[index]]

    def read(self, index: int) -> NDArray[np.uint8] | None:
        """Image ``(H, W, 3)``, turned upright if the annotations are; None if broken and skipped.

        Raises:
            UserError: If the file is broken and not to be skipped, or has another size than in the
                annotation file.
        """
        entry, path = self.entry(index), self.path(index)
        image = self.open(index)
        if image is None:
            return None
        height, width = entry.size
        upright = turn_upright(image, path)
        for candidate in (upright, image):
            if candidate.size == (width, height):
                return np.asarray(candidate)
        raise UserError(
            f"The image {path} is {image.width}x{image.height} pixels, but {self.file.path} "
            f"says {width}x{height} (image {entry.id}); the annotations would be misplaced."
        )

    def refuse_or_remember(self, index: int, error: BrokenImageError) -> None:
        """Add the entry of the annotation file to the error."""
        if self.broken_images == "error":
            raise UserError(
                f"{error} It is the image {self.entry(index).id} of {self.file.path}. Check the "
                "folder of the images, remove the entry, or skip such files with "
                "--data.broken_images skip."
            ) from error
        super().refuse_or_remember(index, error)


class COCOTrainDataset(_CocoImages, Dataset[Sample]):
    """Training images with annotations, randomly transformed.

    As in the official code, images without annotations or with a side below ``min_size`` are left
    out, and an image with nothing but crowds is kept as an example of background.

    Args:
        file: The annotations.
        folder: Folder of the images.
        transform: Random transform of an image and its annotations.
        keep_empty: Keep images without annotations as examples of background.
        min_size: Smallest side in pixels.
        masks: Read masks as well as boxes.
        broken_images: See `src.data.datamodules.base.BaseDataModule`.
        max_pixels: Larger images count as broken.

    Raises:
        UserError: If no image is left, or masks are wanted and no annotation has one.
    """

    def __init__(
        self,
        file: CocoFile,
        folder: str | Path,
        transform: InstanceTransform,
        *,
        keep_empty: bool = False,
        min_size: int = 32,
        masks: bool = True,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        indices, left_out = training_images(file, keep_empty=keep_empty, min_size=min_size)
        if not indices:
            raise UserError(
                f"{file.path} has no image with annotations and sides of at least {min_size} "
                "pixels, so there is nothing to train on."
            )
        maskless = file.left_out.get("no usable mask", 0)
        if masks and maskless and not file.num_usable:
            raise UserError(
                f"{file.path} has {maskless} annotations, but none with a usable mask; set "
                "data.masks to false for a detector without masks, such as "
                "configs/detection/dino_internimage_nano_laptop.yaml."
            )
        super().__init__(file, folder, indices, broken_images, max_pixels)
        self.transform, self.masks, self.left_out = transform, masks, left_out

    def __getitem__(self, index: int) -> Sample:
        """Read and transform one image; all randomness comes from PyTorch's seed.

        If the crop must have an annotation and has none, or the image is broken and skipped,
        another image of the same orientation is used.

        Raises:
            UserError: If the image is broken, or no image gives a crop with an annotation.
        """
        for _ in range(_MAX_TRIES):
            sample = self._try(index)
            if sample is not None:
                return sample
            alike = np.flatnonzero(self.is_wide == self.is_wide[index])
            index = int(alike[int(torch.randint(len(alike), ()))])
        if self._broken.any():
            raise self.refuse_all(index, _MAX_TRIES)
        raise UserError(
            f"{_MAX_TRIES} random crops in a row have no annotation of {self.file.path}; set "
            "data.allow_empty_crop to true."
        )

    def _try(self, index: int) -> Sample | None:
        entry, image = self.entry(index), self.read(index)
        if image is None:
            return None
        annotations, boxes = self.file.training_annotations(int(self._indices[index]))
        if self.masks:
            self._check_memory(entry, len(annotations))
        masks = [decode_mask(a, entry.size) for a in annotations] if self.masks else []
        seed = int(torch.randint(2**31, ()))
        transformed = self.transform(image, boxes, masks, seed)
        if transformed is None:
            return None
        tensor, kept_boxes, kept_masks, kept = transformed
        labels = torch.tensor([annotations[i]["category_id"] for i in kept], dtype=torch.int64)
        target: DetectionTarget = {"boxes": kept_boxes, "labels": labels}
        if self.masks:
            target["masks"] = kept_masks
        return {
            **_sample(tensor, image, entry.id, self.path(index)),
            "target": target,
        }

    def _check_memory(self, entry: ImageEntry, annotations: int) -> None:
        """Refuse masks that are small in the file and exhaust the memory when decoded."""
        needed = annotations * entry.size[0] * entry.size[1]
        if needed > _MAX_MASKS * self.max_pixels:
            raise UserError(
                f"{self.file.path}: the image {shown(entry.id)} of {entry.size[1]}x"
                f"{entry.size[0]} pixels has {annotations} annotations, whose masks would take "
                f"{needed / 2**30:.1f} GiB. Cut the image into smaller ones, or raise "
                "data.max_pixels."
            )


class COCOEvalDataset(_CocoImages, Dataset[Sample]):
    """Every image of an annotation file with its annotations.

    An index beyond the end, and a broken image that is skipped, give a padding sample
    (`src.data.samplers.padding`).

    Args:
        file: The annotations.
        folder: Folder of the images.
        transform: Preparation of an image.
        broken_images: See `src.data.datamodules.base.BaseDataModule`.
        max_pixels: Larger images count as broken.
    """

    def __init__(
        self,
        file: CocoFile,
        folder: str | Path,
        transform: ImageTransform,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(file, folder, range(len(file.images)), broken_images, max_pixels)
        self.transform = transform

    def __getitem__(self, index: int) -> Sample:
        """Read and prepare one image.

        Raises:
            UserError: If the image is broken.
        """
        position = index % len(self)
        entry, image = self.entry(position), self.read(position)
        found = BLANK if image is None else image
        sample = _prepare(self.transform, found, entry.id, self.path(position))
        annotations = self.file.annotations(position)
        sample["annotations"] = [for_scoring(a, entry.size) for a in annotations]
        if self.file.image_labels is not None:
            sample["image_labels"] = self.file.image_labels[position]
        return {**sample, "is_padding": True} if image is None or index >= len(self) else sample


class DetectionFilesDataset(FilesToPredict, Dataset[Sample]):
    """Images to detect in; arguments are those of `FilesToPredict`. ``image_id`` counts from 1."""

    transform: ImageTransform

    def sample(self, image: Image.Image, index: int) -> Sample:
        """Image with its number, size and path, and further views if the transform makes any."""
        return _prepare(self.transform, np.asarray(image), index + 1, self.path(index))


def _sample(tensor: Tensor, image: NDArray[np.uint8], image_id: ImageId, path: str) -> Sample:
    return {
        "image": tensor,
        "size": (tensor.shape[1], tensor.shape[2]),
        "original_size": (image.shape[0], image.shape[1]),
        "image_id": image_id,
        "path": path,
    }


def _prepare(
    transform: ImageTransform, image: NDArray[np.uint8], image_id: ImageId, path: str
) -> Sample:
    """Sample of an image for evaluation, with further views if the transform makes any."""
    sample = _sample(transform(image), image, image_id, path)
    if views := transform.views(image):
        sample["views"] = views
    return sample


def collate(samples: Sequence[Sample], size_divisor: int = 32) -> dict[str, Any]:
    """Batch images of different sizes, padded on the right and at the bottom.

    Args:
        samples: Images of one dataset.
        size_divisor: Height and width of the batch are multiples of this.

    Returns:
        See `src.types.DetectionBatch`.
    """
    images = _join([sample["image"] for sample in samples], size_divisor)
    batch: dict[str, Any] = {"image": images}
    for key in samples[0]:
        if key == "target":
            batch[key] = [_pad(s["target"], (images.shape[2], images.shape[3])) for s in samples]
        elif key == "views":
            batch[key] = [
                {
                    "image": _join([image for image, _ in view], size_divisor),
                    "size": [(image.shape[1], image.shape[2]) for image, _ in view],
                    "flipped": view[0][1],
                }
                for view in zip(*(s["views"] for s in samples), strict=True)
            ]
        elif key != "image":
            batch[key] = [s[key] for s in samples]  # type: ignore[literal-required]
    return batch


def _join(tensors: Sequence[Tensor], size_divisor: int) -> Tensor:
    """Images ``(3, h, w)`` in one tensor, padded with zeros."""
    height, width = (
        -(-max(p.shape[axis] for p in tensors) // size_divisor) * size_divisor for axis in (1, 2)
    )
    images = tensors[0].new_zeros(len(tensors), 3, height, width)
    for row, tensor in zip(images, tensors, strict=True):
        row[:, : tensor.shape[1], : tensor.shape[2]] = tensor
    return images


def _pad(target: DetectionTarget, size: tuple[int, int]) -> DetectionTarget:
    if "masks" not in target:
        return target
    masks = target["masks"]
    padded = masks.new_zeros(len(masks), *size)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return {"boxes": target["boxes"], "labels": target["labels"], "masks": padded}
