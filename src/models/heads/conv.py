"""Convolution, batch norm and ReLU: the unit of the segmentation heads.

Attribute names and start values are those of the official code's framework (mmcv 1.x
``ConvModule``: He normal over the outputs), so that official keys need no renaming.
"""

from __future__ import annotations

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that starts from He normal weights (fan out) and bias 0."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ClassConv2d(nn.Conv2d):
    """1x1 convolution to class scores that starts from a normal of std 0.01 and bias 0."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, 1)

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size of the map stays.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        kernel_size: Odd side of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W) -> (N, out_channels, H, W)``."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out
