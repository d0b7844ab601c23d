"""Parts of transformers over feature maps: sine positions, attention, feed-forward layer.

Sources: Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (arXiv 1706.03762); positions in
two dimensions as in Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020
(arXiv 2005.12872). Start values and constants are those of the official InternImage models.

Tokens are batch first, ``(N, T, C)``. Residuals and norms belong to the layer around these parts;
attention at learned places of several maps is in ``deformable_attention.py``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.weights.match import Renames

POSITION_EPS = 1e-6
Spread = Literal["normal", "uniform"]
"""Xavier's distribution that weights start from: Mask2Former's is normal, DINO's uniform."""
XAVIER = {"normal": nn.init.xavier_normal_, "uniform": nn.init.xavier_uniform_}


FEED_FORWARD_RENAMES: Renames = (
    (r"^ffn\.fc1\.(\d+)\.", r"ffns.0.fc1_\1."),
    (r"^ffn\.fc2\.(\d+)\.", r"ffns.0.fc2_\1."),
    (r"^ffn\.fc2_bias", "ffns.0.fc2_bias"),
    (r"^ffn\.fc1\.", "ffns.0.layers.0.0."),
    (r"^ffn\.fc2\.", "ffns.0.layers.1."),
)
"""Names of `FeedForward` and `SplitFeedForward`, as ``ffn`` of a layer, in released weights."""


def sine_encoding(position: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of positions at frequencies that fall geometrically.

    Args:
        position: Angles in radians, any shape.
        channels: Number of values for each position, even.
        temperature: Ratio of the highest and (nearly) the lowest frequency.

    Returns:
        Shape ``(*position.shape, channels)``: sine and cosine of one frequency side by side.
    """
    pairs = torch.arange(channels // 2, dtype=position.dtype, device=position.device)
    angles = position[..., None] / temperature ** (2 * pairs / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def map_positions(size: tuple[int, int], channels: int, like: Tensor) -> Tensor:
    """Sine encoding of every pixel of a map, first its row, then its column.

    Pixels are counted from 1 and scaled so that the last one is at ``2 pi``.

    Args:
        size: Height and width of the map.
        channels: Width of the result, a multiple of 4.
        like: Tensor whose device and dtype the result gets.

    Returns:
        Shape ``(height * width, channels)``, pixels row by row.
    """
    # Sixteen bits cannot hold the angles of neighbouring pixels of a large map apart.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    height, width = size
    rows, columns = (
        torch.arange(1, side + 1, dtype=dtype, device=like.device)
        / (side + POSITION_EPS)
        * (2 * math.pi)
        for side in (height, width)
    )
    half = channels // 2
    encoded = torch.cat(
        [
            sine_encoding(rows, half)[:, None].expand(height, width, half),
            sine_encoding(columns, half)[None].expand(height, width, half),
        ],
        dim=-1,
    )  # (height, width, channels)
    return encoded.flatten(0, 1).to(like.dtype)


def width_and_height(size: tuple[int, int], like: Tensor) -> Tensor:
    """``(2,)``, dtype and device of ``like``; sizes stay free where a graph is recorded."""
    height, width = size
    return torch.stack([like.new_full((), side) for side in (width, height)])


class XavierLinear(nn.Linear):
    """Linear layer that starts from one of Xavier's distributions.

    Args:
        in_features: Input width.
        out_features: Output width.
        spread: The distribution.
        bias: Whether to add a bias.
    """

    def __init__(
        self, in_features: int, out_features: int, spread: Spread = "normal", bias: bool = True
    ) -> None:
        self.spread = spread
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set the start values; the bias has PyTorch's own."""
        super().reset_parameters()
        XAVIER[self.spread](self.weight)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, on the last axis.

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers.
        spread: Distribution of the start values.
    """

    def __init__(self, channels: int, hidden_channels: int, spread: Spread = "normal") -> None:
        super().__init__()
        self.fc1 = XavierLinear(channels, hidden_channels, spread)
        self.fc2 = XavierLinear(hidden_channels, channels, spread)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class SplitFeedForward(nn.Module):
    """The same function as `FeedForward`, computed and stored in parts of the hidden width.

    The officially released InternImage-G detector has this layout (to shard it).

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers, a multiple of ``parts``.
        parts: Number of parts.
        spread: Distribution of the start values.

    Raises:
        UserError: If ``hidden_channels`` is no multiple of ``parts``.
    """

    def __init__(
        self, channels: int, hidden_channels: int, parts: int, spread: Spread = "normal"
    ) -> None:
        super().__init__()
        if parts < 1 or hidden_channels % parts:
            raise UserError(
                f"The feed-forward layer needs hidden_channels to be a multiple of ffn_parts, got "
                f"{hidden_channels} and {parts}."
            )
        width = hidden_channels // parts
        self.fc1 = nn.ModuleList(XavierLinear(channels, width, spread) for _ in range(parts))
        self.fc2 = nn.ModuleList(
            XavierLinear(width, channels, spread, bias=False) for _ in range(parts)
        )
        self.fc2_bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the common bias; the layers reset themselves."""
        nn.init.zeros_(self.fc2_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        parts = [fc2(F.relu(fc1(x))) for fc1, fc2 in zip(self.fc1, self.fc2, strict=True)]
        return torch.stack(parts).sum(0) + self.fc2_bias


class MultiheadAttention(nn.Module):
    """Multi-head attention with an optional choice of what each query may look at.

    Parameters have the names and shapes of ``torch.nn.MultiheadAttention``, which checkpoints use;
    unlike there, one mask serves all heads without being copied.

    Args:
        channels: Width ``C``, a multiple of ``heads``.
        heads: Attention heads.
        spread: Distribution of the start values.

    Raises:
        UserError: If ``channels`` is no multiple of ``heads``.
    """

    def __init__(self, channels: int, heads: int, spread: Spread = "normal") -> None:
        super().__init__()
        if channels < 1 or heads < 1 or channels % heads:
            raise UserError(
                "Attention needs channels to be a multiple of heads, got "
                f"channels={channels} and heads={heads}."
            )
        self.heads, self.spread = heads, spread
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = XavierLinear(channels, channels, spread)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the start values of all projections."""
        XAVIER[self.spread](self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(N, Q, C)``, positions included.
            key: ``(N, S, C)``, positions included.
            value: ``(N, S, C)``.
            visible: True where a query may look, ``(N, Q, S)``, in each row at least once; default
                is everywhere.

        Returns:
            ``(N, Q, C)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # (N, heads, tokens, C / heads)
        mask = None if visible is None else visible[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out
