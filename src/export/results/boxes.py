"""Box arithmetic in ONNX graphs, with the rounding of ``src.models.detection``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from src.export.results.builder import FLOAT, Builder
from src.models.detection.boxes import MAX_LOG_RATIO
from src.models.detection.nms import SPLIT_FROM


def clip(op: Builder, boxes: ir.Value, size: ir.Value) -> ir.Value:
    """Move corners ``(..., 4)`` into an image of ``size`` (height, width), int64 ``(2,)``."""
    limit = op.Gather(op.Cast(size, to=FLOAT), [1, 0, 1, 0], axis=0)
    clipped: ir.Value = op.Min(op.Max(boxes, 0.0), limit)
    return clipped


def decode(
    op: Builder,
    boxes: ir.Value,
    offsets: ir.Value,
    stds: Sequence[float],
    size: ir.Value,
) -> ir.Value:
    """Apply offsets ``(..., 4)`` to boxes that broadcast with them; see `BoxCoder.decode`."""
    low, high = op.Split(boxes, axis=-1, num_outputs=2, outputs=2)
    centre, extent = op.Mul(op.Add(low, high), 0.5), op.Sub(high, low)
    scaled = op.Mul(offsets, op.constant([float(value) for value in stds]))
    shift, growth = op.Split(scaled, axis=-1, num_outputs=2, outputs=2)
    growth = op.Clip(growth, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    centre = op.Add(centre, op.Mul(extent, shift))
    half = op.Mul(op.Mul(extent, op.Exp(growth)), 0.5)
    return clip(op, op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=-1), size)


def apart(op: Builder, boxes: ir.Value, groups: ir.Value, counted: ir.Value | None) -> ir.Value:
    """Shift the boxes of each group away from those of the others; see `grouped_nms`.

    From 10,000 counted boxes on, the boxes stay where they are: there, `grouped_nms` does not shift
    them either, and its rounding is followed. The groups must then be classes of the NMS.

    Args:
        op: Builder of the graph.
        boxes: ``(..., 4)``.
        groups: Number of the group, int64, broadcasts with ``boxes[..., :1]``.
        counted: Which boxes take part, bool ``(..., 1)``; ``None`` is all, of any number, which are
            always shifted.
    """
    if counted is None:
        step = op.Add(op.ReduceMax(boxes, keepdims=0), 1.0)
    else:
        largest = op.ReduceMax(op.Where(counted, boxes, 0.0), keepdims=0)
        count = op.ReduceSum(op.Cast(counted, to=FLOAT), keepdims=0)
        step = op.Where(op.Less(count, float(SPLIT_FROM)), op.Add(largest, 1.0), 0.0)
    shifted: ir.Value = op.Add(boxes, op.Mul(op.Cast(groups, to=FLOAT), step))
    return shifted


def best(op: Builder, scores: ir.Value, limit: int) -> tuple[ir.Value, ir.Value]:
    """The best scores of a list, at most ``limit``, and their indices."""
    (length,) = op.sides(scores, 0)
    values, indices = op.TopK(scores, op.Min(length, [limit]), axis=0, outputs=2)
    return values, indices


def take(op: Builder, values: ir.Value, indices: ir.Value) -> ir.Value:
    """``values[indices]``."""
    taken: ir.Value = op.Gather(values, indices, axis=0)
    return taken
