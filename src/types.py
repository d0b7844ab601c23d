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

PictureId = int | str
"""How an annotation file calls a picture: COCO has numbers, other files have names too."""


class ClassificationBatch(TypedDict):
    """Pictures and, unless they are to be predicted, their classes.

    Attributes:
        image: Normalised RGB pictures, float32, shape ``(N, 3, H, W)``.
        label: Class indices in ``[0, num_classes)``, int64, shape ``(N,)``. Absent in prediction.
        path: The file of each picture, ``N`` strings.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    image: Tensor
    label: NotRequired[Tensor]
    path: list[str]
    surplus: NotRequired[bool]


class DetectionTarget(TypedDict):
    """The objects of one picture.

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
    """The pictures of a batch prepared in another way, for test-time augmentation.

    Attributes:
        image: As in `DetectionBatch`.
        size: Height and width of each picture without padding.
        flipped: Whether the pictures are mirrored left to right.
    """

    image: Tensor
    size: list[tuple[int, int]]
    flipped: bool


class DetectionBatch(TypedDict):
    """Pictures of a detector and what is known about them.

    Attributes:
        image: Normalised RGB pictures, padded at the right and at the bottom with zeros, float32,
            shape ``(N, 3, H, W)``.
        size: Height and width of each picture without padding.
        original_size: Height and width of each picture in its file.
        image_id: Number of each picture in its annotation file; in prediction its position.
        path: The file of each picture.
        target: Objects to learn from. Only in training.
        annotations: COCO annotations of each picture as they are in the file, except that
            ``category_id`` is the class index. Only in evaluation.
        views: Further views of the same pictures. Only with test-time augmentation.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    image: Tensor
    size: list[tuple[int, int]]
    original_size: list[tuple[int, int]]
    image_id: list[PictureId]
    path: list[str]
    target: NotRequired[list[DetectionTarget]]
    annotations: NotRequired[list[list[dict[str, Any]]]]
    views: NotRequired[list[DetectionView]]
    surplus: NotRequired[bool]


@dataclass
class Detections:
    """What a detector found in one picture, best score first.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the original picture, shape ``(D, 4)``.
        scores: Probabilities, shape ``(D,)``.
        labels: Class indices, int64, shape ``(D,)``.
        masks: Bool, shape ``(D, height, width)`` of the original picture; ``None`` from a detector
            of boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class SegmentationBatch(TypedDict):
    """Pictures to learn segmentation from.

    Attributes:
        image: Normalised RGB pictures, float32, shape ``(N, 3, H, W)``.
        label: Class of every pixel in ``[0, num_classes)``, or 255 where it counts nowhere, int64,
            shape ``(N, H, W)``.
        path: The file of each picture.
    """

    image: Tensor
    label: Tensor
    path: list[str]


class SegmentationEvalBatch(TypedDict):
    """Pictures of different sizes to segment at their own size.

    Attributes:
        views: For each picture its prepared views, float32, each of shape ``(3, h, w)``.
        flipped: Which views are mirrored left to right; the same for all pictures.
        size: Height and width of each picture in its file.
        label: As in `SegmentationBatch`, at the size of the file, one ``(H, W)`` for each picture.
            Absent in prediction. Of a surplus batch only 255.
        path: The file of each picture.
        surplus: True where the batch only keeps this rank in step with the others: nothing in it
            counts. Only in evaluation and prediction.
    """

    views: list[list[Tensor]]
    flipped: list[bool]
    size: list[tuple[int, int]]
    label: NotRequired[list[Tensor]]
    path: list[str]
    surplus: NotRequired[bool]
