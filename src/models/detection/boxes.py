"""Box arithmetic: overlaps, clipping, and offsets between two boxes.

Boxes are ``x1, y1, x2, y2`` in pixels, where ``x2 - x1`` is the width. The formulas are those of
R-CNN (Girshick et al., 2014) with the constants of mmdet 2.x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_area

from src.types import Size

MAX_LOG_RATIO = math.log(1000 / 16)
"""Limit of predicted width and height offsets."""
_MIN_AREA = 1e-6


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of ``a (M, 4)`` with ``b (N, 4)``, shape ``(M, N)``.

    Boxes without area overlap nothing (their union is at least 1e-6).
    """
    corner1 = torch.maximum(a[:, None, :2], b[:, :2])
    corner2 = torch.minimum(a[:, None, 2:], b[:, 2:])
    overlap = (corner2 - corner1).clamp(min=0).prod(dim=-1)
    union = box_area(a)[:, None] + box_area(b) - overlap
    return overlap / union.clamp(min=_MIN_AREA)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Move corners ``(..., 4)`` into an image of height and width ``size``."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def resize_factor(size: Size, original: Size, like: Tensor) -> Tensor:
    """Scale of ``x, y, x, y`` from the original image to the network's input, ``(4,)``.

    Rounded to float32, as in the official code.
    """
    x, y = size[1] / original[1], size[0] / original[0]
    return torch.tensor([x, y, x, y], dtype=torch.float32, device=like.device).to(like.dtype)


class BoxCoder:
    """Encode a box as the offset from another one, and decode it.

    The offset is ``(dx / w, dy / h, log(w' / w), log(h' / h))`` between centres and sizes, divided
    by ``stds``, so that the values that a network predicts are of similar size.

    Args:
        stds: Four positive numbers.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Offsets from ``boxes`` to ``targets``, all ``(N, 4)``; sizes must be positive."""
        center, size = _center_size(boxes)
        target_center, target_size = _center_size(targets)
        shift = (target_center - center) / size
        growth = torch.log(target_size / size)
        return torch.cat([shift, growth], dim=-1) / shift.new_tensor(self.stds)

    def decode(self, boxes: Tensor, offsets: Tensor, size: Size | None = None) -> Tensor:
        """Apply offsets to boxes.

        Args:
            boxes: ``(N, 4)``.
            offsets: ``(N, 4)`` or ``(N, C, 4)`` for one offset per class.
            size: Height and width of the image to clip to; ``None`` does not clip.

        Returns:
            Boxes of the shape of ``offsets``.
        """
        if offsets.dim() == 3:
            boxes = boxes[:, None]
        center, wh = _center_size(boxes)
        offsets = offsets * offsets.new_tensor(self.stds)
        growth = offsets[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        new_center = center + wh * offsets[..., :2]
        half = wh * growth.exp() * 0.5
        decoded = torch.cat([new_center - half, new_center + half], dim=-1)
        return decoded if size is None else clip(decoded, size)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
