"""Post-processing of proposals: score threshold, NMS, and masks pasted into the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.detection.boxes import resize_factor
from src.models.detection.nms import grouped_nms
from src.models.detection.rcnn.mask_head import MASK_ROI_SIDE, MaskHead, masks_of_class
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.types import Detections, Size


@dataclass(frozen=True)
class DetectionLimits:
    """Score and NMS thresholds, and the number of detections.

    Attributes:
        score: Probability that a box must exceed.
        nms_iou: Boxes of one class that overlap a better one by more than this are dropped.
        per_image: Maximum number of detections of an image.
        mask: Probability from which on a pixel belongs to the mask.
    """

    score: float = 0.05
    nms_iou: float = 0.5
    per_image: int = 100
    mask: float = 0.5


def select_detections(
    boxes: Tensor, scores: Tensor, factor: Tensor, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep confident boxes, after NMS within each class.

    Args:
        boxes: One box per proposal and class in the network's input, ``(R, C, 4)``.
        scores: Probabilities, background last, ``(R, C + 1)``.
        factor: See `resize_factor`.
        limits: What to keep.

    Returns:
        Boxes ``(D, 4)`` in the original image, scores ``(D,)`` and classes ``(D,)``, best first.
    """
    confident = scores[:, :-1] > limits.score
    labels = confident.nonzero()[:, 1]
    chosen, score = boxes[confident] / factor, scores[:, :-1][confident]
    kept = grouped_nms(chosen, score, labels, limits.nms_iou)[: limits.per_image]
    return chosen[kept], score[kept], labels[kept]


def add_masks(
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    heads: Sequence[MaskHead],
    pyramid: Sequence[Tensor],
    sizes: Sequence[Size],
    original_sizes: Sequence[Size],
    threshold: float,
) -> list[Detections]:
    """Predict the masks of detected boxes; the masks of several heads are averaged.

    Args:
        found: Boxes, scores and classes of each image, as `select_detections` returns them.
        heads: Mask heads.
        pyramid: Feature maps ``p2..p6``.
        sizes: Height and width of each image without padding.
        original_sizes: Height and width of each image before it was resized.
        threshold: Minimum probability of the pixels of a mask.

    Returns:
        Detections of each image.
    """
    scaled = [
        boxes * resize_factor(size, original, boxes)
        for (boxes, _, _), size, original in zip(found, sizes, original_sizes, strict=True)
    ]
    features = align_on_pyramid(pyramid, boxes_with_image(scaled), MASK_ROI_SIDE)
    labels = torch.cat([label for _, _, label in found])
    masks = torch.stack([masks_of_class(head(features), labels).sigmoid() for head in heads])
    per_image = masks.mean(dim=0).split([len(boxes) for boxes in scaled])
    return [
        Detections(boxes, scores, labels, paste_masks(mask, boxes, original, threshold))
        for (boxes, scores, labels), mask, original in zip(
            found, per_image, original_sizes, strict=True
        )
    ]


def paste_masks(probabilities: Tensor, boxes: Tensor, size: Size, threshold: float) -> Tensor:
    """Paste masks into images of one size.

    Masks are sampled bilinearly at pixel centres with zero padding; box coordinates may be
    fractional. The values are those of the official full-image sampling, computed only
    around the box.

    Args:
        probabilities: Masks ``(N, h, w)`` with values in [0, 1].
        boxes: ``x1, y1, x2, y2`` in pixels of the image, ``(N, 4)``.
        size: Height and width of the image.
        threshold: Minimum probability of the pixels of a mask.

    Returns:
        Bool ``(N, height, width)``.
    """
    height, width = size
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    probabilities, boxes = probabilities.float(), boxes.float()
    low = (boxes[:, :2].floor() - 1).clamp(min=0).long().tolist()
    high = (boxes[:, 2:].ceil() + 1).long().tolist()
    for i, ((x1, y1), (x2, y2)) in enumerate(zip(low, high, strict=True)):
        x2, y2 = min(x2, width), min(y2, height)
        if x1 < x2 and y1 < y2:
            window = _sample(probabilities[i], boxes[i], (x1, x2), (y1, y2))
            pasted[i, y1:y2, x1:x2] = window >= threshold
    return pasted


def _sample(mask: Tensor, box: Tensor, columns: tuple[int, int], rows: tuple[int, int]) -> Tensor:
    """Mask values at the pixel centres of a window, ``(rows, columns)``."""
    x = _position_in_box(columns, box[0], box[2])
    y = _position_in_box(rows, box[1], box[3])
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([grid_x, grid_y], dim=-1)[None]  # (1, rows, columns, 2)
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]


def _position_in_box(pixels: tuple[int, int], start: Tensor, end: Tensor) -> Tensor:
    """Pixel centres relative to the box: -1 at its start, 1 at its end."""
    centers = torch.arange(*pixels, device=start.device, dtype=start.dtype) + 0.5
    position = (centers - start) / (end - start) * 2 - 1
    return torch.where(position.isfinite(), position, 0.0)  # a box without width
