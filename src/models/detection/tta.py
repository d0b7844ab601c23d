"""Test-time augmentation for boxes: fuse the detections of several views of an image.

Source: weighted boxes fusion (Solovyev et al., 2021, arXiv 1910.13302), with the following rules.
The procedure behind the published 65.4 AP has not been released, so these rules may differ from it.

- Boxes of one class form a cluster with the best one if they overlap it by more than ``iou``.
- Each view contributes only its best box to a cluster.
- The box of a cluster is the mean of its boxes, weighted by their scores. Its score is the sum of
  their scores divided by the number of views, so boxes that few views have get lower scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.models.detection.boxes import pairwise_iou
from src.models.detection.nms import grouped_nms
from src.types import Detections


def mirror(found: Detections, width: int) -> Detections:
    """Flip detections left to right in an image of ``width`` pixels."""
    x1, y1, x2, y2 = found.boxes.unbind(dim=1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return Detections(boxes, found.scores, found.labels)


def fuse(views: Sequence[Detections], iou: float = 0.7) -> Detections:
    """Fuse detections of the same image.

    Args:
        views: Detections of each view, in pixels of the same image.
        iou: Boxes of one class that overlap the best one by more than this are fused with it.

    Returns:
        Fused boxes, best score first, as many as the view with the most detections has.
    """
    boxes = torch.cat([view.boxes for view in views])
    scores = torch.cat([view.scores for view in views])
    labels = torch.cat([view.labels for view in views])
    owner = torch.cat([torch.full_like(view.labels, i) for i, view in enumerate(views)])
    leaders = grouped_nms(boxes, scores, labels, iou)
    cluster = _clusters(boxes, labels, leaders)
    sums = scores.new_zeros(len(leaders))
    totals = boxes.new_zeros(len(leaders), 4)
    for i in range(len(views)):
        best = _best_of_each(cluster, scores, owner == i)
        sums.index_add_(0, cluster[best], scores[best])
        totals.index_add_(0, cluster[best], boxes[best] * scores[best, None])
    kept = (sums / len(views)).argsort(descending=True, stable=True)
    kept = kept[: max(len(view.scores) for view in views)]
    fused = totals / sums.clamp(min=torch.finfo(sums.dtype).tiny)[:, None]
    return Detections(fused[kept], (sums / len(views))[kept], labels[leaders][kept])


def _clusters(boxes: Tensor, labels: Tensor, leaders: Tensor) -> Tensor:
    """Index of the leader of each box: the one of its class that it overlaps most."""
    overlap = pairwise_iou(boxes, boxes[leaders])  # (N, leaders)
    overlap = overlap.masked_fill(labels[:, None] != labels[leaders], -1.0)
    overlap[leaders, torch.arange(len(leaders), device=boxes.device)] = 2.0
    return overlap.argmax(dim=1) if len(leaders) else labels.new_zeros(0)


def _best_of_each(cluster: Tensor, scores: Tensor, is_candidate: Tensor) -> Tensor:
    """Index of the best candidate of each cluster that has one."""
    candidates = is_candidate.nonzero().flatten()
    order = scores[candidates].argsort(descending=True, stable=True)
    candidates = candidates[order]
    numbers = cluster[candidates]
    order = numbers.argsort(stable=True)
    candidates, numbers = candidates[order], numbers[order]
    is_first = torch.ones_like(numbers, dtype=torch.bool)
    is_first[1:] = numbers[1:] != numbers[:-1]
    return candidates[is_first]
