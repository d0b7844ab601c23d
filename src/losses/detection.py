"""Losses of detectors: sums over boxes, divided by a given number.

Constants and averages follow mmdet 2.x. The box losses are L1, smooth L1 (Girshick, "Fast R-CNN",
2015) and GIoU (Rezatofighi et al., CVPR 2019).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_SMALL_AREA = 1e-6
# Added to every divisor as in the official code; without boxes the loss is 0 instead of 0/0.
_EPS = torch.finfo(torch.float32).eps


def average(total: Tensor, number: float | Tensor) -> Tensor:
    """Divide a sum by a number of boxes."""
    return total / (number + _EPS)


def mean_over_ranks(number: int, device: torch.device) -> float:
    """Mean of a number of boxes over all ranks, at least 1."""
    mean = torch.tensor(float(number), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return max(mean.item(), 1.0)


def l1_loss(predicted: Tensor, target: Tensor, number: float) -> Tensor:
    """Sum of absolute differences over ``number``."""
    return average((predicted - target).abs().sum(), number)


def smooth_l1_loss(predicted: Tensor, target: Tensor, number: float, beta: float = 1 / 9) -> Tensor:
    """Sum of smooth L1 differences over ``number``, quadratic below ``beta``."""
    return average(F.smooth_l1_loss(predicted, target, reduction="sum", beta=beta), number)


def giou_loss(predicted: Tensor, target: Tensor, number: float) -> Tensor:
    """Sum of ``1 - GIoU`` of paired boxes over ``number``.

    Args:
        predicted: Boxes ``x1, y1, x2, y2`` of shape ``(N, 4)``.
        target: Boxes of shape ``(N, 4)``.
        number: Divisor.

    Returns:
        Scalar.
    """
    overlap = _area(
        torch.maximum(predicted[:, :2], target[:, :2]),
        torch.minimum(predicted[:, 2:], target[:, 2:]),
    )
    hull = _area(
        torch.minimum(predicted[:, :2], target[:, :2]),
        torch.maximum(predicted[:, 2:], target[:, 2:]),
    ).clamp(min=_SMALL_AREA)
    areas = (box[:, 2:] - box[:, :2] for box in (predicted, target))
    union = (sum(area.prod(dim=1) for area in areas) - overlap).clamp(min=_SMALL_AREA)
    giou = overlap / union - (hull - union) / hull
    return average((1 - giou).sum(), number)


def _area(corner1: Tensor, corner2: Tensor) -> Tensor:
    return (corner2 - corner1).clamp(min=0).prod(dim=1)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of masks ``(N, h, w)``; 0, with zero gradients, for no masks."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, target)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of rows of ``logits (N, C)`` whose largest entry is the label; 0 without rows."""
    if not len(logits):
        return logits.new_zeros(())
    return (logits.argmax(dim=1) == labels).to(logits.dtype).mean()
