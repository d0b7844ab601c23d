"""Parts of transformers over feature maps: sine positions, attention, feed-forward layer.

Sources: Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (arXiv 1706.03762); positions in
two dimensions as in Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020
(arXiv 2005.12872). Initial values and constants are those of the official InternImage models.

Tokens are batch first, ``(N, T, C)``. Residuals and norms belong to the layer around these parts;
attention at learned sampling locations is in ``deformable_attention.py``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.linear import XAVIER, Xavier, XavierLinear
from src.models.weights.match import Renames
from src.types import Size

POSITION_EPS = 1e-6

FEED_FORWARD_RENAMES: Renames = (
    (r"^ffn\.fc1\.(\d+)\.", r"ffns.0.fc1_\1."),
    (r"^ffn\.fc2\.(\d+)\.", r"ffns.0.fc2_\1."),
    (r"^ffn\.fc2_bias", "ffns.0.fc2_bias"),
    (r"^ffn\.fc1\.", "ffns.0.layers.0.0."),
    (r"^ffn\.fc2\.", "ffns.0.layers.1."),
)
"""Names in released weights of `FeedForward` and `SplitFeedForward`, the ``ffn`` of a layer."""


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


def sine_positions(size: Size, channels: int, like: Tensor) -> Tensor:
    """Sine encoding of every pixel of a feature map, first its row, then its column.

    Pixels are counted from 1 and scaled so that the last one is at ``2 pi``.

    Args:
        size: Height and width of the feature map.
        channels: Width of the result, a multiple of 4.
        like: Tensor that gives device and dtype of the result.

    Returns:
        Shape ``(height * width, channels)``, pixels row by row.
    """
    # In 16 bits, neighbouring pixels of a large feature map would have the same angle.
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


def width_and_height(size: Size, like: Tensor) -> Tensor:
    """Tensor ``(2,)`` on the device of ``like``; sizes stay dynamic in an exported graph."""
    height, width = size
    return torch.stack([like.new_full((), side) for side in (width, height)])


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, on the last axis.

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers.
        xavier: Distribution of the initial weights.
    """

    def __init__(self, channels: int, hidden_channels: int, xavier: Xavier = "normal") -> None:
        super().__init__()
        self.fc1 = XavierLinear(channels, hidden_channels, xavier)
        self.fc2 = XavierLinear(hidden_channels, channels, xavier)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class SplitFeedForward(nn.Module):
    """The same function as `FeedForward`, computed and stored in parts of the hidden width.

    The released InternImage-G detector has this layout, so that the layer can be sharded.

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers, a multiple of ``parts``.
        parts: Number of parts.
        xavier: Distribution of the initial weights.

    Raises:
        UserError: If ``hidden_channels`` is not a multiple of ``parts``.
    """

    def __init__(
        self, channels: int, hidden_channels: int, parts: int, xavier: Xavier = "normal"
    ) -> None:
        super().__init__()
        if parts < 1 or hidden_channels % parts:
            raise UserError(
                f"The feed-forward layer needs hidden_channels to be a multiple of ffn_parts, got "
                f"{hidden_channels} and {parts}."
            )
        width = hidden_channels // parts
        self.fc1 = nn.ModuleList(XavierLinear(channels, width, xavier) for _ in range(parts))
        self.fc2 = nn.ModuleList(
            XavierLinear(width, channels, xavier, bias=False) for _ in range(parts)
        )
        self.fc2_bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the bias that the parts share; the layers reset themselves."""
        nn.init.zeros_(self.fc2_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        parts = [fc2(F.relu(fc1(x))) for fc1, fc2 in zip(self.fc1, self.fc2, strict=True)]
        return torch.stack(parts).sum(0) + self.fc2_bias


class MultiheadAttention(nn.Module):
    """Multi-head attention with an optional mask.

    Parameters have the names and shapes of ``torch.nn.MultiheadAttention``, which checkpoints use;
    unlike there, one mask is broadcast over all heads without a copy.

    Args:
        channels: Width ``C``, a multiple of ``heads``.
        heads: Attention heads.
        xavier: Distribution of the initial weights.

    Raises:
        UserError: If ``channels`` is not a multiple of ``heads``.
    """

    def __init__(self, channels: int, heads: int, xavier: Xavier = "normal") -> None:
        super().__init__()
        if channels < 1 or heads < 1 or channels % heads:
            raise UserError(
                "Attention needs channels to be a multiple of heads, got "
                f"channels={channels} and heads={heads}."
            )
        self.heads, self.xavier = heads, xavier
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = XavierLinear(channels, channels, xavier)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of all projections."""
        XAVIER[self.xavier](self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(N, Q, C)``, positions included.
            key: ``(N, S, C)``, positions included.
            value: ``(N, S, C)``.
            attn_mask: True where a query attends to a key, ``(N, Q, S)``, in each row at least
                once; default is everywhere.

        Returns:
            ``(N, Q, C)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # (N, heads, tokens, C / heads)
        mask = None if attn_mask is None else attn_mask[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out
