"""Put the small mask of a box where the box is in the image.

Every pixel centre is looked up in the mask bilinearly, zero outside; a box need not start or end at
whole pixels. Same values as the official full-image sampling, computed only around the box.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.types import Size


def paste_masks(probabilities: Tensor, boxes: Tensor, size: Size, threshold: float) -> Tensor:
    """Paste masks into images of one size.

    Args:
        probabilities: Masks ``(N, h, w)`` with values in [0, 1].
        boxes: ``x1, y1, x2, y2`` in pixels of the image, ``(N, 4)``.
        size: Height and width of the image.
        threshold: Pixels from this probability on belong to the object.

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
