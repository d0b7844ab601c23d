"""Multi-scale deformable attention with its projections, as DINO and Mask2Former use it.

Source: Zhu et al., "Deformable DETR", ICLR 2021 (arXiv 2010.04159), section 4; parameter names and
initial values are those of the official code: the sampling locations form a star around the
reference point, one ray per head. Residual, norm and dropout belong to the layer around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.transformer import width_and_height
from src.ops import ms_deform_attn
from src.types import Size


class MultiScaleDeformableAttention(nn.Module):
    """Every query attends to a few sampling locations on every level.

    Args:
        channels: Width ``C`` of queries and feature maps, a multiple of ``heads``.
        heads: Attention heads.
        levels: Number of feature maps.
        points: Sampling locations per head and level.

    Raises:
        UserError: If ``channels`` is not a multiple of ``heads``.
    """

    def __init__(
        self, channels: int = 256, heads: int = 8, levels: int = 4, points: int = 4
    ) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(
                f"Deformable attention needs channels to be a multiple of heads, got "
                f"channels={channels} and heads={heads}."
            )
        self.channels, self.heads, self.levels, self.points = channels, heads, levels, points
        locations = heads * levels * points
        self.sampling_offsets = nn.Linear(channels, locations * 2)
        self.attention_weights = nn.Linear(channels, locations)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of the projections."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(self._star().to(self.sampling_offsets.bias))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def _star(self) -> Tensor:
        """Initial offsets: head ``h`` samples ``1, 2, ...`` pixels along its own direction."""
        angles = [2 * math.pi * head / self.heads for head in range(self.heads)]
        rays = [(math.cos(angle), math.sin(angle)) for angle in angles]
        lengths = [max(abs(x), abs(y)) for x, y in rays]
        star = [
            (x / length * (point + 1), y / length * (point + 1))
            for (x, y), length in zip(rays, lengths, strict=True)
            for _ in range(self.levels)
            for point in range(self.points)
        ]
        return torch.tensor(star, device="cpu").flatten()

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[Size],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(N, Q, C)``, positions included.
            references: Where each query is on each level, in [0, 1]: points ``(N, Q, levels, 2)``
                as ``(x, y)`` or boxes ``(N, Q, levels, 4)`` as centre and size. Offsets are in
                pixels of the level from a point, and in units of half the box over ``points``
                from the centre of a box.
            value: Feature maps of all levels, flattened, ``(N, S, C)``.
            spatial_shapes: Height and width of each level.
            padding: True where a pixel is padding and counts as zero, ``(N, S)``.

        Returns:
            ``(N, Q, C)``.
        """
        batch, queries, _ = query.shape
        values = self.value_proj(value)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        values = values.view(batch, -1, self.heads, self.channels // self.heads)
        weights = self.attention_weights(query)
        weights = weights.view(batch, queries, self.heads, self.levels * self.points).softmax(-1)
        weights = weights.view(batch, queries, self.heads, self.levels, self.points)
        locations = self._locations(query, references, spatial_shapes)
        attended = ms_deform_attn(
            values, spatial_shapes, locations, weights.to(_wider(weights, values))
        )
        out: Tensor = self.output_proj(attended)
        return out

    def _locations(
        self, query: Tensor, references: Tensor, spatial_shapes: Sequence[Size]
    ) -> Tensor:
        """Sampling locations ``(N, Q, heads, levels, points, 2)`` in [0, 1], float32 or wider."""
        offsets = self.sampling_offsets(query)
        offsets = offsets.to(torch.promote_types(offsets.dtype, references.dtype))
        offsets = offsets.view(*query.shape[:2], self.heads, self.levels, self.points, 2)
        centers = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            sizes = torch.stack([width_and_height(shape, offsets) for shape in spatial_shapes])
            return centers + offsets / sizes[:, None]
        return centers + offsets / self.points * references[:, :, None, :, None, 2:] * 0.5


def _wider(weights: Tensor, values: Tensor) -> torch.dtype:
    """Dtype for the attention weights: autocast on a GPU returns float32 from softmax."""
    return weights.dtype if weights.dtype == torch.float32 else values.dtype
