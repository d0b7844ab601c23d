"""Set loss of boxes: each ground-truth box of an image is matched with one query.

Source: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020 (arXiv
2005.12872), section 3.1, with the focal loss (Lin et al., ICCV 2017) as Deformable DETR and DINO
use it. Costs, weights and averages are those of the official InternImage configurations
``dino_4scale_*`` (mmdet 2.28). The matching is optimal (Hungarian algorithm, from SciPy).

Predicted boxes are centre and size in [0, 1] of an image without padding; ground-truth boxes are
corners in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from src.losses.detection import average, giou_loss, l1_loss
from src.types import DetectionTarget, Size

ALPHA, GAMMA = 0.25, 2.0
CLASS_COST = 2.0
BOX_WEIGHT, IOU_WEIGHT = 5.0, 2.0  # of the losses and of the costs
_EPS = 1e-12

Pairs = list[tuple[Tensor, Tensor]]
"""For each image the indices of matched queries and of their ground-truth boxes."""


def scale_of(size: Size, like: Tensor) -> Tensor:
    """Width, height, width, height of an image in pixels, ``(4,)``."""
    return like.new_tensor([size[1], size[0], size[1], size[0]])


def relative_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Corners in pixels ``(G, 4)`` to centre and size in [0, 1] of the image."""
    return box_convert(boxes, "xyxy", "cxcywh") / scale_of(size, boxes)


def pixel_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Centre and size in [0, 1] ``(Q, 4)`` to corners in pixels of the image."""
    return box_convert(boxes, "cxcywh", "xyxy") * scale_of(size, boxes)


@torch.no_grad()
def hungarian_match(
    logits: Tensor, boxes: Tensor, targets: Sequence[DetectionTarget], sizes: Sequence[Size]
) -> Pairs:
    """Match ground-truth boxes with queries at the lowest total cost.

    Args:
        logits: Class logits, ``(N, Q, classes)``.
        boxes: Boxes, ``(N, Q, 4)``.
        targets: Ground truth of each image.
        sizes: Height and width of each image.

    Returns:
        Pairs, ascending by query. With fewer queries than ground-truth boxes some boxes have none.
    """
    pairs = []
    for i, target in enumerate(targets):
        cost = _cost(logits[i], boxes[i], target, sizes[i])
        # NaN occurs only if training has diverged; the losses will be NaN too.
        query, gt = linear_sum_assignment(cost.nan_to_num(1e5).cpu().numpy())
        device = logits.device
        pairs.append((torch.as_tensor(query, device=device), torch.as_tensor(gt, device=device)))
    return pairs


def _cost(logits: Tensor, boxes: Tensor, target: DetectionTarget, size: Size) -> Tensor:
    """Cost of every query for every ground-truth box, ``(Q, G)``."""
    gt_boxes = target["boxes"].to(boxes)
    probability = logits.sigmoid()[:, target["labels"]]
    positive = -(probability + _EPS).log() * ALPHA * (1 - probability) ** GAMMA
    negative = -(1 - probability + _EPS).log() * (1 - ALPHA) * probability**GAMMA
    distance = torch.cdist(boxes, relative_boxes(gt_boxes, size), p=1)
    overlap = generalized_iou(pixel_boxes(boxes, size), gt_boxes)
    return CLASS_COST * (positive - negative) + BOX_WEIGHT * distance - IOU_WEIGHT * overlap


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of corners ``a (M, 4)`` with ``b (N, 4)``, ``(M, N)``; -1 at worst, never NaN."""
    return generalized_box_iou(a, b).nan_to_num(-1.0)


def focal_loss(logits: Tensor, labels: Tensor, number: float) -> Tensor:
    """Sum of the focal loss of every class over ``number``.

    Args:
        logits: ``(..., classes)``.
        labels: Class of each row, ``classes`` for background, ``(...)``.
        number: Divisor.
    """
    target = F.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits)
    probability = logits.sigmoid()
    error = probability + target - 2 * probability * target
    weight = ((1 - ALPHA) + (2 * ALPHA - 1) * target) * error**GAMMA
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return average((weight * entropy).sum(), number)


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[DetectionTarget],
    sizes: Sequence[Size],
    pairs: Pairs,
    number: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one layer for given pairs.

    Args:
        logits: Class logits, ``(N, Q, classes)``.
        boxes: Boxes, ``(N, Q, 4)``.
        targets: Ground truth of each image.
        sizes: Height and width of each image.
        pairs: Matched queries and ground-truth boxes; other queries are background.
        number: Number of ground-truth boxes that the losses are divided by.

    Returns:
        Focal loss of the classes, L1 loss and GIoU loss of the boxes.
    """
    labels = logits.new_full(logits.shape[:2], logits.shape[2], dtype=torch.long)
    for i, (query, gt) in enumerate(pairs):
        labels[i, query] = targets[i]["labels"][gt]
    matched = [boxes[i, query] for i, (query, _) in enumerate(pairs)]
    truth = [targets[i]["boxes"].to(boxes)[gt] for i, (_, gt) in enumerate(pairs)]
    scales = [scale_of(size, boxes).expand_as(box) for size, box in zip(sizes, truth, strict=True)]
    scale, predicted, gt_boxes = torch.cat(scales), torch.cat(matched), torch.cat(truth)
    gt_relative = box_convert(gt_boxes, "xyxy", "cxcywh") / scale
    corners = box_convert(predicted, "cxcywh", "xyxy") * scale
    return (
        focal_loss(logits, labels, number),
        BOX_WEIGHT * l1_loss(predicted, gt_relative, number),
        IOU_WEIGHT * giou_loss(corners, gt_boxes, number),
    )
