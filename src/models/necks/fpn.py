"""Feature pyramid network: the feature maps of all stages, merged top-down.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144);
details (biases, no norm, no activation, Xavier initialisation, extra level by striding) are those
of the official InternImage detectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers.conv import ConvUnit


class FPN(nn.Module):
    """Lateral 1x1 convolutions, top-down sum, 3x3 convolutions, one extra coarse level.

    Args:
        in_channels: Widths of the feature maps, finest first.
        out_channels: Width of every output.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            ConvUnit(width, out_channels, 1, init="xavier", relu=False) for width in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvUnit(out_channels, out_channels, 3, init="xavier", relu=False) for _ in in_channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merge the feature maps of the stages.

        Args:
            features: ``c2..c5``, each ``(N, C_i, H_i, W_i)``, finest first.

        Returns:
            ``p2..p6``: one feature map of ``out_channels`` per input, same sizes, and a last one
            that is every second cell of the coarsest.
        """
        merged = [conv(c) for conv, c in zip(self.lateral_convs, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            size = merged[i - 1].shape[-2:]
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=size, mode="nearest")
        pyramid = [conv(m) for conv, m in zip(self.fpn_convs, merged, strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]
