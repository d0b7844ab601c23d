"""Decoder of DINO: self-attention, deformable cross-attention, iterative box refinement.

Source: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object
Detection", ICLR 2023 (arXiv 2203.03605), on Deformable DETR; order of operations and constants of
the official InternImage configurations ``dino_4scale_*`` (mmdet 2.28). Norms follow each residual;
there is no dropout. Boxes are centre and size in [0, 1] of each image without padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.models.detection.dino.padding import Padding
from src.models.layers.compilation import RepeatedPart
from src.models.layers.deformable_encoder import LayerSizes
from src.models.layers.linear import XavierLinear
from src.models.layers.precision import full_precision
from src.models.layers.transformer import (
    FEED_FORWARD_RENAMES,
    MultiheadAttention,
    sine_encoding,
)
from src.models.weights.match import Renames
from src.types import Size

BOX_TEMPERATURE = 10000.0
SIGMOID_EPS = 1e-3


def inverse_sigmoid(x: Tensor, eps: float = SIGMOID_EPS) -> Tensor:
    """Logit of values clamped to [0, 1], each side kept at least ``eps`` from 0."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class DecoderLayer(RepeatedPart):
    """Self-attention of queries, deformable attention to feature maps, a feed-forward layer.

    Args:
        layer: Sizes of the layer.
    """

    official_renames: ClassVar[Renames] = (
        (r"^self_attention\.", "attentions.0.attn."),
        (r"^cross_attention\.", "attentions.1."),
        *FEED_FORWARD_RENAMES,
    )

    def __init__(self, layer: LayerSizes) -> None:
        super().__init__()
        self.self_attention = MultiheadAttention(layer.channels, layer.heads, layer.xavier)
        self.cross_attention = layer.make_attention()
        self.ffn = layer.make_ffn()
        self.norms = nn.ModuleList(nn.LayerNorm(layer.channels) for _ in range(3))

    def compute(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        sizes: Sequence[Size],
        padding: Tensor,
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Forward pass of one layer.

        Args:
            queries: ``(N, Q, C)``.
            positions: Encoding of each query's box, ``(N, Q, C)``.
            references: Box of each query on each feature map, ``(N, Q, levels, 4)``.
            memory: Result of the encoder, ``(N, S, C)``.
            sizes: Height and width of each feature map.
            padding: True where a pixel is padding, ``(N, S)``.
            attn_mask: True where the query of a row attends to the query of a column,
                ``(1, Q, Q)``; ``None`` is everywhere.

        Returns:
            ``(N, Q, C)``.
        """
        placed = queries + positions
        queries = self.norms[0](queries + self.self_attention(placed, placed, queries, attn_mask))
        attended = self.cross_attention(queries + positions, references, memory, sizes, padding)
        queries = self.norms[1](queries + attended)
        out: Tensor = self.norms[2](queries + self.ffn(queries))
        return out


class DINODecoder(nn.Module):
    """A stack of `DecoderLayer`; each refines the boxes that the next one samples around.

    Args:
        num_layers: Number of layers.
        layer: Sizes of each layer.
    """

    def __init__(self, num_layers: int, layer: LayerSizes) -> None:
        super().__init__()
        self.channels = layer.channels
        self.layers = nn.ModuleList(DecoderLayer(layer) for _ in range(num_layers))
        self.ref_point_head = nn.Sequential(
            XavierLinear(2 * layer.channels, layer.channels, "uniform"),
            nn.ReLU(inplace=True),
            XavierLinear(layer.channels, layer.channels, "uniform"),
        )
        self.norm = nn.LayerNorm(layer.channels)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        padding: Padding,
        attn_mask: Tensor | None,
        reg_branches: nn.ModuleList,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine the queries.

        Args:
            queries: ``(N, Q, C)``.
            boxes: Initial box of each query, ``(N, Q, 4)``.
            memory: Result of the encoder, ``(N, S, C)``.
            padding: Padding of the feature maps.
            attn_mask: See `DecoderLayer`.
            reg_branches: One per layer; predicts the change of a box from its query.

        Returns:
            For each layer the normed queries, and the boxes that its predictions are relative to.
            These keep the gradient of the layer before ("look forward twice"), while the boxes that
            the layer itself samples around are detached.
        """
        ratios = torch.cat([padding.ratios, padding.ratios], dim=-1)[:, None]  # (N, 1, levels, 4)
        tokens = padding.tokens
        states, references = [], [boxes]
        for layer, branch in zip(self.layers, reg_branches, strict=False):
            scaled = boxes[:, :, None] * ratios
            positions = self.ref_point_head(self._encode(scaled[:, :, 0]).to(queries.dtype))
            queries = layer(queries, positions, scaled, memory, padding.sizes, tokens, attn_mask)
            refined = (full_precision(branch(queries)) + inverse_sigmoid(boxes)).sigmoid()
            boxes = refined.detach()
            states.append(self.norm(queries))
            references.append(refined)
        return states, references[:-1]

    def _encode(self, boxes: Tensor) -> Tensor:
        """Sine encoding of boxes ``(N, Q, 4)`` in the order y, x, width, height."""
        angles = boxes[..., [1, 0, 2, 3]] * (2 * math.pi)
        return sine_encoding(angles, self.channels // 2, BOX_TEMPERATURE).flatten(-2)
