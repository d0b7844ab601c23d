"""Reference implementation of multi-scale deformable attention for tests.

It gathers the four pixels around every sampling location with the same code as the DCNv3 reference,
one level and one point at a time, and shares no code with the operator. It supports second
derivatives and is slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ms_deform_attn import check_attention
from .reference import gather, make_point


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Plain PyTorch multi-scale deformable attention; see :func:`src.ops.ms_deform_attn`.

    Computes in float64 for float64 values and in float32 otherwise.
    """
    check_attention(value, spatial_shapes, locations, weights)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    batch, queries, heads, _, points, _ = locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[3], dtype=dtype, device=value.device)
    levels = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    for i, (height, width) in enumerate(spatial_shapes):
        for p in range(points):
            location = locations[:, :, :, i, p].to(dtype)  # (N, Q, heads, 2)
            x, y = location[..., 0] * width - 0.5, location[..., 1] * height - 0.5
            weight = weights[:, :, :, i, p].to(dtype)
            for corner in make_point(x, y, (height, width)).corners:
                factor = (weight * corner.weight).unsqueeze(-1)
                output = output + factor * gather(levels[i], corner)
    return output.flatten(2).to(value.dtype)
