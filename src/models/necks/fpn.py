"""Feature pyramid network: maps of all stages mixed top-down to one width.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144);
details (biases, no norm, no activation, Xavier start, extra level by striding) as the official
InternImage detectors use them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers.conv import ConvUnit


class FPN(nn.Module):
    """Lateral 1x1 convolutions, top-down sum, 3x3 convolutions, one extra coarse level.

    Args:
        in_channels: Widths of the maps, finest first.
        out_channels: Width of every output.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            ConvUnit(width, out_channels, 1, start="xavier", relu=False) for width in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvUnit(out_channels, out_channels, 3, start="xavier", relu=False) for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mix the maps of the stages.

        Args:
            maps: ``c2..c5``, each ``(N, C_i, H_i, W_i)``, finest first.

        Returns:
            ``p2..p6``: one map of ``out_channels`` per input, same sizes, and a last one that is
            every second cell of the coarsest.
        """
        mixed = [conv(c) for conv, c in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(mixed) - 1, 0, -1):
            size = mixed[i - 1].shape[-2:]
            mixed[i - 1] = mixed[i - 1] + F.interpolate(mixed[i], size=size, mode="nearest")
        pyramid = [conv(m) for conv, m in zip(self.fpn_convs, mixed, strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]
