"""What travels between the data modules and the tasks. Knows neither Lightning nor ``torch.nn``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:  # commands that only look at files start without torch
    from torch import Tensor

IGNORE_LABEL = 255
"""Label of pixels that count nowhere, neither in losses nor in metrics."""

Size = tuple[int, int]
"""Height and width, in pixels or cells."""

ImageId = int | str
"""How an annotation file calls an image: COCO has numbers, other files have names too."""


class ClassificationBatch(TypedDict):
    """Images and, unless they are to be predicted, their classes.

    Attributes:
        image: Normalised RGB images, float32, shape ``(N, 3, H, W)``.
        label: Class indices in ``[0, num_classes)``, int64, shape ``(N,)``. Absent in prediction.
        path: The file of each image, ``N`` strings.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    image: Tensor
    label: NotRequired[Tensor]
    path: list[str]
    surplus: NotRequired[bool]


class DetectionTarget(TypedDict):
    """The objects of one image.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the network's input, float32, shape ``(G, 4)``.
        labels: Class indices in ``[0, num_classes)``, int64, shape ``(G,)``.
        masks: 0 and 1, uint8, shape ``(G, H, W)`` with the padded size of the batch. Absent where
            the data module was told to read boxes alone.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]


class DetectionView(TypedDict):
    """The images of a batch prepared in another way, for test-time augmentation.

    Attributes:
        image: As in `DetectionBatch`.
        size: Height and width of each image without padding.
        flipped: Whether the images are mirrored left to right.
    """

    image: Tensor
    size: list[tuple[int, int]]
    flipped: bool


class DetectionBatch(TypedDict):
    """Images of a detector and what is known about them.

    Attributes:
        image: Normalised RGB images, padded at the right and at the bottom with zeros, float32,
            shape ``(N, 3, H, W)``.
        size: Height and width of each image without padding.
        original_size: Height and width of each image in its file.
        image_id: Number of each image in its annotation file; in prediction its position.
        path: The file of each image.
        target: Objects to learn from. Only in training.
        annotations: COCO annotations of each image as they are in the file, except that
            ``category_id`` is the class index. Only in evaluation.
        views: Further views of the same images. Only with test-time augmentation.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    image: Tensor
    size: list[tuple[int, int]]
    original_size: list[tuple[int, int]]
    image_id: list[ImageId]
    path: list[str]
    target: NotRequired[list[DetectionTarget]]
    annotations: NotRequired[list[list[dict[str, Any]]]]
    views: NotRequired[list[DetectionView]]
    surplus: NotRequired[bool]


@dataclass
class Detections:
    """What a detector found in one image, best score first.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the original image, shape ``(D, 4)``.
        scores: Probabilities, shape ``(D,)``.
        labels: Class indices, int64, shape ``(D,)``.
        masks: Bool, shape ``(D, height, width)`` of the original image; ``None`` from a detector
            of boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class SegmentationBatch(TypedDict):
    """Images to learn segmentation from.

    Attributes:
        image: Normalised RGB images, float32, shape ``(N, 3, H, W)``.
        label: Class of every pixel in ``[0, num_classes)``, or 255 where it counts nowhere, int64,
            shape ``(N, H, W)``.
        path: The file of each image.
    """

    image: Tensor
    label: Tensor
    path: list[str]


class SegmentationEvalBatch(TypedDict):
    """Images of different sizes to segment at their own size.

    Attributes:
        views: For each image its prepared views, float32, each of shape ``(3, h, w)``.
        flipped: Which views are mirrored left to right; the same for all images.
        size: Height and width of each image in its file.
        label: As in `SegmentationBatch`, at the size of the file, one ``(H, W)`` for each image.
            Absent in prediction. Of a surplus batch only 255.
        path: The file of each image.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    views: list[list[Tensor]]
    flipped: list[bool]
    size: list[tuple[int, int]]
    label: NotRequired[list[Tensor]]
    path: list[str]
    surplus: NotRequired[bool]
