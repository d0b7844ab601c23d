"""Deformable encoder over the pixels of several feature maps, as in DINO and Mask2Former.

Source: Zhu et al., "Deformable DETR", ICLR 2021 (arXiv 2010.04159), section 4.1; order of
operations and constants of the official InternImage models (mmdet 2.28). Norms follow each
residual; there is no dropout. Positions and reference points are given by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from src.models.layers.compilation import RepeatedPart
from src.models.layers.deformable_attention import MultiScaleDeformableAttention
from src.models.layers.linear import Xavier
from src.models.layers.transformer import (
    FEED_FORWARD_RENAMES,
    FeedForward,
    SplitFeedForward,
)
from src.models.weights.match import Renames
from src.types import Size


class LayerSizes(NamedTuple):
    """Sizes and initialisation of a layer.

    Attributes:
        channels: Width ``C`` of the tokens.
        heads: Attention heads.
        levels: Number of feature maps.
        points: Sampling locations per head and feature map.
        hidden_channels: Width inside the feed-forward layer.
        xavier: Distribution of the initial weights.
        ffn_parts: Number of parts that the feed-forward layer is stored in; 1 is the usual layer.
    """

    channels: int
    heads: int
    levels: int
    points: int
    hidden_channels: int
    xavier: Xavier = "normal"
    ffn_parts: int = 1

    def make_ffn(self) -> nn.Module:
        """The feed-forward layer."""
        if self.ffn_parts == 1:
            return FeedForward(self.channels, self.hidden_channels, self.xavier)
        return SplitFeedForward(self.channels, self.hidden_channels, self.ffn_parts, self.xavier)

    def make_attention(self) -> MultiScaleDeformableAttention:
        """The attention over the feature maps."""
        return MultiScaleDeformableAttention(self.channels, self.heads, self.levels, self.points)


class EncoderLayer(RepeatedPart):
    """Deformable self-attention over all feature maps and a feed-forward layer, each with a norm.

    Args:
        layer: Sizes of the layer.
    """

    official_renames: ClassVar[Renames] = (
        (r"^attention\.", "attentions.0."),
        *FEED_FORWARD_RENAMES,
    )

    def __init__(self, layer: LayerSizes) -> None:
        super().__init__()
        self.attention = layer.make_attention()
        self.ffn = layer.make_ffn()
        self.norms = nn.ModuleList(nn.LayerNorm(layer.channels) for _ in range(2))

    def compute(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        sizes: Sequence[Size],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Update the tokens.

        Args:
            tokens: All pixels of all feature maps, ``(N, S, C)``.
            positions: Encoding of each pixel's position, ``(N, S, C)`` or ``(S, C)``.
            references: Position of each pixel on each feature map, ``(N, S, levels, 2)``.
            sizes: Height and width of each feature map.
            padding: True where a pixel is padding, ``(N, S)``; ``None`` is nowhere.

        Returns:
            ``(N, S, C)``.
        """
        attended = self.attention(tokens + positions, references, tokens, sizes, padding)
        tokens = self.norms[0](tokens + attended)
        out: Tensor = self.norms[1](tokens + self.ffn(tokens))
        return out


class Encoder(nn.Module):
    """A stack of `EncoderLayer`.

    Args:
        num_layers: Number of layers.
        layer: Sizes of each layer.
    """

    def __init__(self, num_layers: int, layer: LayerSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(layer) for _ in range(num_layers))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        sizes: Sequence[Size],
        padding: Tensor | None = None,
    ) -> Tensor:
        """See `EncoderLayer`."""
        for layer in self.layers:
            tokens = layer(tokens, positions, references, sizes, padding)
        return tokens
