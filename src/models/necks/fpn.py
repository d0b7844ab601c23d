"""Feature pyramid network: the feature maps of all stages, merged top-down.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144);
details (biases, no norm, no activation, Xavier initialisation, extra level by striding) are those
of the official InternImage detectors. With norms it is the pyramid of the official FlashInternImage
detectors, ``FPN_vitdet``, which uses the norms of ViTDet (Li et al., ECCV 2022, arXiv 2203.16527).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers.conv import Conv2d, ConvUnit
from src.models.layers.norm import LayerNorm


class ConvLayerNorm(nn.Module):
    """Convolution without bias and LayerNorm over channels; parameters ``conv.*`` and ``ln.*``.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel_size: Odd side of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, init="xavier", bias=False)
        self.ln = LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C', H, W)``."""
        out: Tensor = self.ln(self.conv(x).permute(0, 2, 3, 1))  # (N, H, W, C')
        return out.permute(0, 3, 1, 2)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, top-down sum, 3x3 convolutions, one extra coarse level.

    Args:
        in_channels: Widths of the feature maps, finest first.
        out_channels: Width of every output.
        norm: LayerNorm after every convolution, which then has no bias (``FPN_vitdet``).
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int = 256, norm: bool = False
    ) -> None:
        super().__init__()
        make: Callable[[int, int, int], nn.Module] = (
            ConvLayerNorm if norm else partial(ConvUnit, init="xavier", relu=False)
        )
        self.lateral_convs = nn.ModuleList(make(width, out_channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(make(out_channels, out_channels, 3) for _ in in_channels)

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
        # Copied, because exported programs would otherwise only accept sizes with the same strides.
        coarse = pyramid[-1][:, :, ::2, ::2].clone(memory_format=torch.contiguous_format)
        return [*pyramid, coarse]
