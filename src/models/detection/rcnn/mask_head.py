"""Mask head, and its targets.

Source: He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from src.models.detection.boxes import clip
from src.models.layers.conv import ClassConv2d, ConvUnit, Upsample2x
from src.models.layers.precision import full_precision

MASK_ROI_SIDE = 14
MASK_SIDE = 28


class MaskHead(nn.Module):
    """Four 3x3 convolutions, one upsampling, one mask of 28 x 28 per class.

    Args:
        num_classes: Classes without background ``C``.
        channels: Width of the features and of the convolutions.
        num_convs: Number of 3x3 convolutions.
    """

    def __init__(self, num_classes: int, channels: int = 256, num_convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvUnit(channels, channels, 3) for _ in range(num_convs))
        self.upsample = Upsample2x(channels, channels)
        self.conv_logits = ClassConv2d(channels, num_classes, 1, init="kaiming")

    def forward(self, features: Tensor) -> Tensor:
        """``(R, channels, 14, 14)`` to logits ``(R, C, 28, 28)``."""
        for conv in self.convs:
            features = conv(features)
        return full_precision(self.conv_logits(F.relu(self.upsample(features))))


def masks_of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Masks ``(R, C, h, w)`` of one class per region, ``(R, h, w)``."""
    return logits[torch.arange(labels.shape[0], device=labels.device), labels]


def mask_targets(
    boxes: Sequence[Tensor], matched_gt: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    """Part of each ground-truth mask that lies in a box, resized to 28 x 28.

    Args:
        boxes: Positive boxes of each image, ``(P, 4)``.
        matched_gt: Index of the ground-truth mask of each box, ``(P,)``.
        masks: Ground-truth masks of each image, ``(G, H, W)``, any dtype of 0 and 1.

    Returns:
        0 and 1 in the dtype of the boxes, shape ``(sum of P, 28, 28)``.
    """
    targets = [boxes[0].new_zeros(0, MASK_SIDE, MASK_SIDE)]
    for box, index, mask in zip(boxes, matched_gt, masks, strict=True):
        if not len(box):
            continue
        inside = clip(box, (mask.shape[-2], mask.shape[-1]))
        rois = torch.cat([index[:, None].to(box), inside], dim=1)  # each mask is an "image"
        resized = roi_align(mask[:, None].to(box), rois, MASK_SIDE, aligned=True)
        targets.append((resized[:, 0] >= 0.5).to(box))
    return torch.cat(targets)
