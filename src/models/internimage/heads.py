"""Classification heads of InternImage, without the last linear layer.

Source: official classification code (OpenGVLab/InternImage, MIT) for widths, norms and the order of
operations. T to XL use `ConvHead`; H and G pool with `ClipProjector`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.layers import check_batch_norm, layer_norm
from src.models.layers.linear import Linear

CLIP_WIDTH = 1024
PROJECTED_WIDTH = 768
HEAD_WIDTH = 64
_REDUCTIONS = ("avg", "max", "avgmax", "catavgmax")
POOLINGS = ("", *_REDUCTIONS, "fast", *(f"fast{name}" for name in _REDUCTIONS))
"""Values of ``global_pool``: timm's names; those with ``fast`` are aliases here."""


class ConvHead(nn.Module):
    """1x1 convolution, batch norm, GELU, global pooling.

    Args:
        in_channels: Width of the last feature map.
        out_channels: Width of the features after the convolution.
        global_pool: Pooling by timm's name: ``avg`` (official), ``max``, ``avgmax``, ``catavgmax``
            (which doubles the width), or ``""`` for none.
    """

    def __init__(self, in_channels: int, out_channels: int, global_pool: str = "avg") -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU()
        self.pool = pooling(global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, h, w) -> (N, out_channels)``, without pooling ``(N, out_channels, h, w)``.

        Raises:
            UserError: In training, if batch norm would have one value per channel.
        """
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if self.training and type(self.norm) is nn.BatchNorm2d and not is_traced:
            check_batch_norm(x)
        out: Tensor = self.pool(self.act(self.norm(self.conv(x))))
        return out


def pooling(global_pool: str) -> nn.Module:
    """Global pooling by timm's name, ``(N, C, h, w) -> (N, C)``; ``""`` returns the feature map.

    Raises:
        UserError: If there is no such pooling.
    """
    if global_pool not in POOLINGS:
        raise UserError(
            f"global_pool must be one of {', '.join(map(repr, POOLINGS))}, got {global_pool!r}."
        )
    name = global_pool and f"fast{global_pool.removeprefix('fast')}"
    return SelectAdaptivePool2d(pool_type=name, flatten=bool(name))


class AttentionPool(nn.Module):
    """Multi-head attention of one query over tokens, projected to another width.

    The biases of query, key and value are parameters of their own because released checkpoints
    store them so. The key bias shifts all scores of a query alike and thus has no effect.

    Args:
        channels: Width of tokens and query, a multiple of 64 (the width of an attention head).
        out_channels: Width of the result.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // HEAD_WIDTH
        self.q = Linear(channels, channels, init="trunc_normal", bias=False)
        self.k = Linear(channels, channels, init="trunc_normal", bias=False)
        self.v = Linear(channels, channels, init="trunc_normal", bias=False)
        self.q_bias = nn.Parameter(torch.empty(channels))
        self.k_bias = nn.Parameter(torch.empty(channels))
        self.v_bias = nn.Parameter(torch.empty(channels))
        self.proj = Linear(channels, out_channels, init="trunc_normal")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the three biases; the submodules reset themselves."""
        for bias in (self.q_bias, self.k_bias, self.v_bias):
            nn.init.zeros_(bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``(N, 1, C), (N, L, C), (N, L, C) -> (N, out_channels)``."""
        q = self._heads(F.linear(query, self.q.weight, self.q_bias))
        k = self._heads(F.linear(key, self.k.weight, self.k_bias))
        v = self._heads(F.linear(value, self.v.weight, self.v_bias))
        out = F.scaled_dot_product_attention(q, k, v)  # (N, heads, 1, 64)
        pooled: Tensor = self.proj(out.flatten(1))
        return pooled

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, HEAD_WIDTH)).transpose(1, 2)  # (N, heads, L, 64)


class ClipProjector(nn.Module):
    """Attention pooling whose query is the mean token, with a norm for each of its three inputs.

    Args:
        channels: Width of the tokens.
        out_channels: Width of the pooled features.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = layer_norm(channels)
        self.norm1_k = layer_norm(channels)
        self.norm1_v = layer_norm(channels)
        self.cross_dcn = AttentionPool(channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, L, C) -> (N, out_channels)``."""
        query = self.norm1_q(tokens.mean(dim=1, keepdim=True))
        pooled: Tensor = self.cross_dcn(query, self.norm1_k(tokens), self.norm1_v(tokens))
        return pooled
