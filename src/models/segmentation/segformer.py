"""SegFormer head: feature maps of all stages projected to one width, fused and scored per pixel.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", NeurIPS 2021; widths and names of the parameters as in the files of the official
InternImage models. Scores have the resolution of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.conv import ClassConv2d
from src.models.segmentation.head import SegmentationHead, conv_norm_relu, resize


class SegFormerHead(SegmentationHead):
    """Class scores from the feature maps of all stages, with 1x1 convolutions only.

    Args:
        in_channels: Width of each feature map, finest first.
        num_classes: Classes to score.
        channels: Width of all inner feature maps; official: 256.
        dropout: Probability to drop a whole channel before the class scores, in [0, 1).

    Raises:
        UserError: If a width is below 1 or there are no feature maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 150,
        channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not in_channels or channels < 1 or num_classes < 1:
            raise UserError(
                "SegFormerHead needs feature maps, and channels and num_classes of at least 1, got "
                f"in_channels={list(in_channels)}, channels={channels}, num_classes={num_classes}."
            )
        self.convs = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in in_channels)
        self.fusion_conv = conv_norm_relu(len(in_channels) * channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = ClassConv2d(channels, num_classes, 1, init=0.01)

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps, finest first, to ``(N, channels, H/4, W/4)``."""
        size = (features[0].shape[-2], features[0].shape[-1])
        projected = [conv(x) for conv, x in zip(self.convs, features, strict=True)]
        out: Tensor = self.fusion_conv(torch.cat([resize(x, size) for x in projected], dim=1))
        return out

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See `SegmentationHead`; logits have the size of the finest feature map."""
        logits: Tensor = self.conv_seg(self.dropout(self.fuse(features)))
        return logits
