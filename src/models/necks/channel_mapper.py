"""Channel mapper: all feature maps projected to one width, and further coarser levels.

Source: the neck of Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159, section 4.1) as the
official InternImage detectors use it: no bias, GroupNorm, no activation, Xavier initialisation.
Levels are not mixed with each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.norm import GroupNorm

NORM_GROUPS = 32


class ConvGroupNorm(nn.Module):
    """Convolution without bias and GroupNorm; parameters ``conv.*`` and ``gn.*``.

    Args:
        in_channels: Input width.
        out_channels: Output width, a multiple of 32.
        kernel_size: Odd side of the kernel.
        stride: Step in pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = _XavierConv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.gn = GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C', H / stride, W / stride)``."""
        out: Tensor = self.gn(self.conv(x))
        return out


class _XavierConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)


class ChannelMapper(nn.Module):
    """Project feature maps to one width and add coarser levels.

    Args:
        in_channels: Widths of the input feature maps, finest first.
        out_channels: Width of every output, a multiple of 32 above 32.
        num_levels: Number of outputs; each one beyond the inputs is a strided convolution, the
            first of the last input, the others of the output before.

    Raises:
        UserError: If ``out_channels`` is not such a multiple.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int = 256, num_levels: int = 4
    ) -> None:
        super().__init__()
        if out_channels % NORM_GROUPS or out_channels <= NORM_GROUPS:
            raise UserError(
                f"The channel mapper needs channels to be a multiple of {NORM_GROUPS} above "
                f"{NORM_GROUPS}, got {out_channels}."
            )
        self.convs = nn.ModuleList(ConvGroupNorm(width, out_channels, 1) for width in in_channels)
        widths = [in_channels[-1], *[out_channels] * num_levels]
        self.extra_convs = nn.ModuleList(
            ConvGroupNorm(widths[i], out_channels, 3, stride=2)
            for i in range(num_levels - len(in_channels))
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Project each feature map to ``out_channels``.

        Args:
            features: ``(N, C_i, H_i, W_i)`` for each input.

        Returns:
            ``(N, C, H_i, W_i)`` for each level.
        """
        levels = [conv(x) for conv, x in zip(self.convs, features, strict=True)]
        last = features[-1]
        for conv in self.extra_convs:
            last = conv(last)
            levels.append(last)
        return levels
