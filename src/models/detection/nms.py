"""Non-maximum suppression within groups (levels or classes)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

SPLIT_FROM = 10_000
"""Number of boxes from which on `grouped_nms` works group by group."""


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression within each group.

    Boxes of different groups are shifted apart and suppressed together; from 10,000 boxes on, group
    by group. torchvision's ``batched_nms`` does the same with another limit. The limit decides how
    overlaps are rounded, so the one of the official code is used here.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        groups: Group of each box, int64 ``(N,)``.
        iou: Boxes that overlap a better one of their group by more than this are dropped.

    Returns:
        Indices of the kept boxes, best score first.
    """
    if not len(boxes):
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    if len(boxes) < SPLIT_FROM:
        apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
        return nms(apart, scores, iou)
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        kept.append(members[nms(boxes[members], scores[members], iou)])
    indices = torch.cat(kept).sort().values
    return indices[scores[indices].sort(descending=True, stable=True).indices]
