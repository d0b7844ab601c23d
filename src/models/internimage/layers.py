"""Layers of InternImage: initialised linear layers, LayerNorm, channels-last convolution, MLP.

Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023 (arXiv 2211.05778); initial values are those of the official code. Feature
maps are channels-last, ``(N, H, W, C)``.

Each module that owns parameters initialises them in ``reset_parameters``, so a network made on
the meta device has the same initial values after ``to_empty`` as one made on a real device.
"""

from __future__ import annotations

from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


class Linear(nn.Linear):
    """``nn.Linear`` that starts from a truncated normal of std 0.02 and bias 0."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        self._reset_weight()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _reset_weight(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)


class XavierLinear(Linear):
    """``nn.Linear`` that starts Xavier uniform with bias 0 (projections of DCNv3)."""

    def _reset_weight(self) -> None:
        nn.init.xavier_uniform_(self.weight)


class ZeroLinear(Linear):
    """``nn.Linear`` that starts at zero (offsets and mask of DCNv3: a plain regular grid)."""

    def _reset_weight(self) -> None:
        nn.init.zeros_(self.weight)


def layer_norm(channels: int) -> nn.LayerNorm:
    """LayerNorm over the last axis with the epsilon of every InternImage norm, 1e-6."""
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)


def conv_nhwc(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a channels-last map without copying it.

    A contiguous ``(N, H, W, C)`` tensor seen as ``(N, C, H, W)`` is exactly PyTorch's
    channels-last memory format, so both permutations are views.

    Args:
        conv: Convolution with ``in_channels == C``.
        x: Map of shape ``(N, H, W, C)``.

    Returns:
        Map of shape ``(N, H', W', C')``.
    """
    out: Tensor = conv(x.permute(0, 3, 1, 2))  # (N, C', H', W')
    return out.permute(0, 2, 3, 1)  # (N, H', W', C')


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them, on the last axis.

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers.
        drop_rate: Dropout probability after each layer, in [0, 1).
    """

    def __init__(self, channels: int, hidden_channels: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out
