"""Types exchanged between data modules and tasks, independent of Lightning and ``torch.nn``.

Loaders give uint8 images; the data module normalises them on the device (`BaseDataModule`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

if TYPE_CHECKING:  # commands that only read files start without importing torch
    from torch import Tensor

IGNORE_LABEL = 255
"""Label of pixels that are ignored in losses and metrics."""

ENOUGH_IMAGES = 10_000
"""With fewer COCO images, a detector that starts from random weights is clearly worse (He et al.,
"Rethinking ImageNet Pre-training", ICCV 2019, section 5)."""

Size = tuple[int, int]
"""Height and width in pixels."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

ImageId = int | str
"""Id of an image in an annotation file: a number in COCO, a name in some other datasets."""


class ImageLabels(NamedTuple):
    """Classes that annotators checked in a whole image, as class indices.

    In LVIS and OpenImages, an image is annotated for some of the classes only, and a detection of
    another class is neither right nor wrong.

    Attributes:
        present: Classes known to be in the image.
        absent: Classes known not to be in it.
        not_exhaustive: Classes of which some instances may have no annotation.
    """

    present: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassFacts:
    """Properties of the classes of a dataset that its metric needs.

    Attributes:
        frequencies: ``"r"``, ``"c"`` or ``"f"`` (rare, common, frequent) of each class in LVIS;
            empty in other datasets.
        ancestors: Indices of the more general classes of each class in OpenImages; empty in other
            datasets.
    """

    frequencies: tuple[str, ...] = ()
    ancestors: tuple[tuple[int, ...], ...] = ()


class ClassificationBatch(TypedDict):
    """Images and, except in prediction, their classes.

    Attributes:
        image: Normalised RGB images, float32, shape ``(N, 3, H, W)``.
        label: Class indices in ``[0, num_classes)``, int64, shape ``(N,)``. Absent in prediction.
        path: The file of each image, ``N`` strings.
        temporal: Encoded dates, float32, shape ``(N, 4)``. Only of datasets with metadata.
        spatial: Encoded places, float32, shape ``(N, 3)``. Only of datasets with metadata.
        candidates: Classes that the prediction is chosen from, int64, shape ``(C,)``; absent if
            these are all. Only in evaluation.
        is_padding: Whether the batch only equalises the number of batches per rank,
            and is ignored in metrics and results. Only in evaluation and prediction.
    """

    image: Tensor
    label: NotRequired[Tensor]
    path: list[str]
    candidates: NotRequired[Tensor]
    temporal: NotRequired[Tensor]
    spatial: NotRequired[Tensor]
    is_padding: NotRequired[bool]


class FeatureBatch(TypedDict):
    """Cached features of a frozen backbone instead of images.

    Attributes:
        features: Result of ``forward_features`` of the network, float32, shape ``(N, C, h, w)``.
        label: As in `ClassificationBatch`.
    """

    features: Tensor
    label: Tensor


class DetectionTarget(TypedDict):
    """Ground truth of one image.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the network input, float32, shape ``(G, 4)``.
        labels: Class indices in ``[0, num_classes)``, int64, shape ``(G,)``.
        masks: 0 and 1, uint8, shape ``(G, H, W)`` with the padded size of the batch. Absent if the
            data module reads only boxes.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]


class DetectionView(TypedDict):
    """Another view of the images of a batch, for test-time augmentation.

    Attributes:
        image: As in `DetectionBatch`.
        size: Height and width of each image without padding.
        flipped: Whether the images are flipped horizontally.
    """

    image: Tensor
    size: list[tuple[int, int]]
    flipped: bool


class DetectionBatch(TypedDict):
    """Images, metadata and ground truth for a detector.

    Attributes:
        image: Normalised RGB images, zero-padded at the right and bottom, float32, shape
            ``(N, 3, H, W)``.
        size: Height and width of each image without padding.
        original_size: Height and width of each image in its file.
        image_id: Id of each image in the annotation file; its index in prediction.
        path: The file of each image.
        target: Ground truth of each image. Only in training.
        annotations: COCO annotations of each image as in the file, except that ``category_id`` is
            the class index. Only in evaluation.
        image_labels: Classes that were checked in each image. Only in evaluation, and only of
            datasets that are not annotated for all classes.
        views: Further views of the same images. Only with test-time augmentation.
        is_padding: Whether the batch only equalises the number of batches per rank,
            and is ignored in metrics and results. Only in evaluation and prediction.
    """

    image: Tensor
    size: list[tuple[int, int]]
    original_size: list[tuple[int, int]]
    image_id: list[ImageId]
    path: list[str]
    target: NotRequired[list[DetectionTarget]]
    annotations: NotRequired[list[list[dict[str, Any]]]]
    image_labels: NotRequired[list[ImageLabels]]
    views: NotRequired[list[DetectionView]]
    is_padding: NotRequired[bool]


@dataclass
class Detections:
    """Detections of one image, sorted by descending score.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the original image, shape ``(D, 4)``.
        scores: Probabilities, shape ``(D,)``.
        labels: Class indices, int64, shape ``(D,)``.
        masks: Bool, shape ``(D, height, width)`` of the original image; ``None`` for a detector
            without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass
class PanopticSegments:
    """Segments of one image, no two of which share a pixel.

    Attributes:
        ids: Number of the segment of each pixel, counted from 1, int32, shape ``(height, width)``
            of the original image; 0 without a segment.
        labels: Class index of segment 1, 2, ...
        scores: Probability of each class.
    """

    ids: Tensor
    labels: list[int]
    scores: list[float]


class SegmentationBatch(TypedDict):
    """Images and label maps for training a segmentor.

    Attributes:
        image: Normalised RGB images, float32, shape ``(N, 3, H, W)``.
        label: Class of every pixel in ``[0, num_classes)``, or 255 for ignored pixels, int64, shape
            ``(N, H, W)``.
        size: Height and width of each crop without padding, int64, shape ``(N, 2)``.
        path: The file of each image.
    """

    image: Tensor
    label: Tensor
    size: NotRequired[Tensor]
    path: list[str]


class SegmentationEvalBatch(TypedDict):
    """Images of different sizes for evaluating a segmentor at the original sizes.

    Attributes:
        views: Preprocessed views of each image, float32, each of shape ``(3, h, w)``.
        flipped: Which views are flipped horizontally; the same for all images.
        size: Height and width of each image in its file.
        label: As in `SegmentationBatch`, at the original size, one ``(H, W)`` per image. Absent in
            prediction; only 255 in a padding batch.
        weight: Weight of each pixel in instance-level scores, float32, one ``(H, W)`` per image;
            0 outside of instances. Only where the dataset has instances.
        path: The file of each image.
        is_padding: Whether the batch only equalises the number of batches per rank,
            and is ignored in metrics and results. Only in evaluation and prediction.
    """

    views: list[list[Tensor]]
    flipped: list[bool]
    size: list[tuple[int, int]]
    label: NotRequired[list[Tensor]]
    weight: NotRequired[list[Tensor]]
    path: list[str]
    is_padding: NotRequired[bool]
