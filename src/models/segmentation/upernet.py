"""UPerNet head: pyramid pooling on the last stage, a feature pyramid, and class scores per pixel.

Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018
(arXiv 1807.10221); layer order and attribute names as in the official InternImage models, which
take the head from mmsegmentation 0.27. Scores have the resolution of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.conv import ClassConv2d
from src.models.segmentation.head import SegmentationHead, conv_norm_relu, resize
from src.models.weights.match import Renames


class UPerHead(SegmentationHead):
    """Class scores from the feature maps of all stages.

    Args:
        in_channels: Width of each feature map, finest first.
        num_classes: Classes to score.
        channels: Width of all inner feature maps; official: 512.
        pool_scales: Sides of the pooled grids of the pyramid pooling module.
        dropout: Probability to drop a whole channel before the class scores, in [0, 1).
        align_corners: Convention of all bilinear resizes; official: false.

    Raises:
        UserError: If a width or scale is below 1 or there are fewer than two feature maps.
    """

    official_renames: ClassVar[Renames] = ((r"^(psp_modules\.\d+)\.", r"\1.1."),)

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 150,
        channels: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise UserError(
                f"UPerHead needs the feature maps of at least two stages, got {in_channels}."
            )
        if channels < 1 or num_classes < 1 or not pool_scales or min(pool_scales) < 1:
            raise UserError(
                "UPerHead needs channels, num_classes and pool_scales of at least 1, got "
                f"channels={channels}, num_classes={num_classes}, pool_scales={pool_scales}."
            )
        *finer, last = in_channels
        self.pool_scales = tuple(pool_scales)
        self.align_corners = align_corners
        self.psp_modules = nn.ModuleList(conv_norm_relu(last, channels, 1) for _ in pool_scales)
        self.bottleneck = conv_norm_relu(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = conv_norm_relu(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = ClassConv2d(channels, num_classes, 1, init=0.01)

    def pool_pyramid(self, x: Tensor) -> Tensor:
        """Pyramid pooling module: ``(N, C, h, w) -> (N, channels, h, w)``."""
        size = (x.shape[-2], x.shape[-1])
        pooled = [
            resize(module(F.adaptive_avg_pool2d(x, scale)), size, self.align_corners)
            for scale, module in zip(self.pool_scales, self.psp_modules, strict=True)
        ]
        out: Tensor = self.bottleneck(torch.cat([x, *pooled], dim=1))
        return out

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps, finest first, to ``(N, channels, H/4, W/4)``."""
        *finer, last = features
        top_down = self.pool_pyramid(last)
        levels = [top_down]  # coarsest first
        for i in reversed(range(len(finer))):
            lateral: Tensor = self.lateral_convs[i](finer[i])
            size = (lateral.shape[-2], lateral.shape[-1])
            top_down = lateral + resize(top_down, size, self.align_corners)
            levels.append(self.fpn_convs[i](top_down))
        levels.reverse()
        size = (levels[0].shape[-2], levels[0].shape[-1])
        merged = torch.cat([resize(level, size, self.align_corners) for level in levels], dim=1)
        out: Tensor = self.fpn_bottleneck(merged)
        return out

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See `SegmentationHead`; logits have the size of the finest feature map."""
        logits: Tensor = self.conv_seg(self.dropout(self.fuse(features)))
        return logits
