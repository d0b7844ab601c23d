"""What the segmentation heads share: their interface, convolutions and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers.conv import ConvUnit
from src.models.weights.match import Match


class SegmentationHead(nn.Module):
    """Base of modules that score every pixel from the feature maps of all stages.

    Subclasses are constructed from ``(in_channels, num_classes)``: the width of each feature map,
    finest first, and the number of classes.
    """

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Score every pixel.

        Args:
            features: Feature maps of all stages, finest first, ``(N, C_i, H_i, W_i)``.

        Returns:
            Logits of shape ``(N, num_classes, H_k, W_k)`` at the size of one of the feature maps.
        """
        raise TypeError(f"{type(self).__name__} must define forward()")

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Ignore the head of a file if it is another kind of head, which shares only the scores."""
        own = [f"{prefix}{name}" for name in self.state_dict()]
        given = [name for name in own if name in match.state]
        foreign = [name for name in match.unused if name.startswith(prefix)]
        if foreign and all(name.startswith(f"{prefix}conv_seg.") for name in given):
            for name in given:
                del match.state[name]
            match.unused = [name for name in match.unused if name not in set(foreign)]
            match.note(
                f"{match.source} has another kind of {prefix.removesuffix('.')}, which is not used."
            )


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> ConvUnit:
    """Convolution of stride 1 without bias, batch norm, ReLU."""
    return ConvUnit(in_channels, out_channels, kernel_size, norm=True)


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of ``(N, C, H, W)`` to ``(N, C, *size)``; the same tensor if it fits."""
    # Sizes are symbolic while a graph is traced; resizing to the same size changes nothing.
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
