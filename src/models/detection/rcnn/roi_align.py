"""RoIAlign: features of a fixed size from a feature pyramid for every box.

Source: He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870); half-pixel aligned and with as many
sampling points as a bin has cells, as in the official detectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

STRIDES = (4, 8, 16, 32)
_FINEST_SIDE = 56.0


def boxes_with_image(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of several images as one ``(R, 5)``: index of the image, then the box."""
    return torch.cat(
        [torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)]
    )


def align_on_pyramid(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    """Pool every box from the level that fits its size.

    Boxes with sides (geometric mean) below 112 pixels are pooled from the finest level; each
    doubling of the side is one level coarser.

    Args:
        pyramid: Feature maps ``(N, C, H_i, W_i)`` of strides 4, 8, 16, 32; further ones are unused.
        rois: Boxes ``(R, 5)`` of `boxes_with_image`.
        side: Cells per side of the result.

    Returns:
        Features ``(R, C, side, side)``.
    """
    level = pyramid_level(rois)
    features = pyramid[0].new_zeros(len(rois), pyramid[0].shape[1], side, side)
    for i, stride in enumerate(STRIDES):
        members = (level == i).nonzero().flatten()
        if len(members):
            # 16 bits would round boxes to whole pixels and more.
            exact = torch.promote_types(pyramid[i].dtype, rois.dtype)
            cut = roi_align(
                pyramid[i].to(exact),
                rois[members].to(exact),
                (side, side),
                1 / stride,
                aligned=True,
            )
            features = features.index_copy(0, members, cut.to(features))
    return features


def pyramid_level(rois: Tensor) -> Tensor:
    """Index of the level that fits each box of ``(R, 5)``, int64 ``(R,)``."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    level = torch.floor(torch.log2(area.sqrt() / _FINEST_SIDE + 1e-6))
    return level.clamp(0, len(STRIDES) - 1).long()
