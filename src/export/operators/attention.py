"""Multi-scale deformable attention in two forms of standard operators.

``gather`` picks the four pixels around each sampling location, from all levels at once.
``gridsample`` is one ``GridSample`` per level, with the heads as images of a batch.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from src.export.operators.building import (
    affine,
    axis,
    floats,
    ints,
    length,
    op,
    reshape,
    sampled_rows,
)


def gather(value: Any, sides: Any, locations: Any, weights: Any) -> Any:
    """See `src.ops.ms_deform_attn`; ``sides``, heights and widths, may be symbolic."""
    heads, levels, points = (int(locations.shape[i]) for i in (2, 3, 4))
    channels = int(value.shape[3])
    heights = op.Concat(*(length(side) for side in sides[0::2]), axis=0)  # (levels,)
    widths = op.Concat(*(length(side) for side in sides[1::2]), axis=0)
    areas = op.Mul(heights, widths)
    starts = op.CumSum(areas, op.Constant(value_int=0), exclusive=1)
    # Every head of every image is a list of pixels, one level after the other.
    rows = reshape(op.Transpose(value, perm=[0, 2, 1, 3]), -1, channels)  # (N * heads * S, C)
    pixels = axis(value, 1)
    lists = op.Range(
        op.Constant(value_int=0),
        op.Squeeze(op.Mul(op.Mul(axis(value, 0), ints(heads)), pixels)),
        op.Squeeze(pixels),
    )
    per_point = [
        reshape(op.Expand(reshape(x, -1, 1), ints(levels, points)), -1)
        for x in (
            starts,
            op.Cast(widths, to=TensorProto.FLOAT),
            op.Cast(heights, to=TensorProto.FLOAT),
        )
    ]
    first = op.Add(reshape(lists, -1, 1, heads, 1), per_point[0])  # (N, 1, heads, levels * P)
    flat = reshape(locations, 0, 0, 0, -1, 2)
    x, y = (
        op.Sub(op.Mul(op.Gather(flat, op.Constant(value_int=i), axis=4), side), floats(0.5))
        for i, side in enumerate(per_point[1:])
    )
    shares = reshape(weights, 0, 0, 0, -1)
    _, width, height = per_point
    return reshape(sampled_rows(rows, first, x, y, width, height, shares), 0, 0, -1)


def gridsample(value: Any, sides: Any, locations: Any, weights: Any) -> Any:
    """See `gather`."""
    levels = len(sides) // 2
    # (N, heads, Q, levels, P, 2): the edges of a feature map are -1 and 1 instead of 0 and 1.
    grid = op.Transpose(affine(locations, 2.0, -1.0), perm=[0, 2, 1, 3, 4, 5])
    factors = op.Transpose(weights, perm=[0, 2, 1, 3, 4])  # (N, heads, Q, levels, P)
    images = op.Transpose(value, perm=[0, 2, 3, 1])  # (N, heads, C, S)
    queries, points, channels = axis(locations, 1), axis(locations, 4), axis(value, 3)
    start, total = ints(0), None
    for level in range(levels):
        height, width = (length(side) for side in sides[2 * level : 2 * level + 2])
        end = op.Add(start, op.Mul(height, width))
        samples = op.GridSample(
            reshape(op.Slice(images, start, end, ints(3)), -1, channels, height, width),
            reshape(_level(grid, level), -1, queries, points, 2),
            align_corners=0,
            mode="bilinear",
            padding_mode="zeros",
        )  # (N * heads, C, Q, P)
        weighted = op.Mul(samples, reshape(_level(factors, level), -1, 1, queries, points))
        part = op.ReduceSum(weighted, ints(3), keepdims=0)
        total = part if total is None else op.Add(total, part)  # (N * heads, C, Q)
        start = end
    rows = reshape(total, axis(locations, 0), -1, queries)
    return op.Transpose(rows, perm=[0, 2, 1])  # (N, Q, heads * C)


def _level(values: Any, level: int) -> Any:
    return op.Gather(values, op.Constant(value_int=level), axis=3)
