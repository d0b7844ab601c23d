"""Small expressions that several operators use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto
from onnxscript.onnx_opset import opset18

op: Any = opset18  # annotated for eager values, while the operators build graphs


def affine(x: Any, factor: float, summand: float) -> Any:
    """``x * factor + summand``."""
    return op.Add(op.Mul(x, floats(factor)), floats(summand))


def floats(*values: float) -> Any:
    """A float32 constant ``(len(values),)``."""
    return op.Constant(value_floats=list(values))


def ints(*values: int) -> Any:
    """An int64 constant ``(len(values),)``."""
    return op.Constant(value_ints=list(values))


def length(side: Any) -> Any:
    """A number or a scalar as a value of shape ``(1,)``."""
    return ints(side) if isinstance(side, int) else op.Reshape(side, ints(1))


def axis(x: Any, index: int) -> Any:
    """Length of an axis as a value of shape ``(1,)``."""
    return op.Shape(x, start=index, end=index + 1)


def reshape(x: Any, *sides: Any) -> Any:
    """Reshape to sides that are numbers or values of shape ``(1,)``; 0 keeps an axis."""
    if all(isinstance(side, int) for side in sides):
        return op.Reshape(x, ints(*sides))
    parts = [ints(side) if isinstance(side, int) else side for side in sides]
    return op.Reshape(x, op.Concat(*parts, axis=0))


def sampled_rows(
    rows: Any, start: Any, x: Any, y: Any, width: Any, height: Any, weight: Any
) -> Any:
    """Weighted sum of bilinear samples of images whose pixels are the rows of a matrix.

    Args:
        rows: Pixels of all images, ``(R, C)``.
        start: Row of the first pixel of the image of each sample, int64 ``(..., P)``.
        x: Column of each sample in its image, ``(..., P)``; integers are pixel centres.
        y: Row of each sample in its image.
        width: Width of the image of each sample, float.
        height: Height of the image of each sample, float.
        weight: Weight of each sample.

    Returns:
        ``(..., C)``. Pixels outside of an image are zero.
    """
    stride, start = (op.Cast(value, to=TensorProto.INT32) for value in (width, start))
    columns = _neighbours(x, width)
    total = None
    for row, row_share in _neighbours(y, height):
        # Both pixels of a row are gathered at once: faster than one by one, and all four at once
        # would take twice the memory.
        first, weighted = op.Add(op.Mul(row, stride), start), op.Mul(row_share, weight)
        indices = [op.Add(first, column) for column, _ in columns]
        shares = [op.Mul(weighted, column_share) for _, column_share in columns]
        pixels = op.Gather(rows, op.Concat(*indices, axis=-1), axis=0)  # (..., 2 P, C)
        part = op.MatMul(op.Unsqueeze(op.Concat(*shares, axis=-1), ints(-2)), pixels)
        total = part if total is None else op.Add(total, part)  # (..., 1, C)
    return op.Squeeze(total, ints(-2))


def _neighbours(position: Any, size: Any) -> list[tuple[Any, Any]]:
    """Index and share of the two pixels around a position; the share is 0 outside of the image."""
    lower = op.Floor(position)
    share = op.Sub(position, lower)
    pairs = ((lower, op.Sub(floats(1.0), share)), (op.Add(lower, floats(1.0)), share))
    found = []
    for pixel, part in pairs:
        inside = op.And(op.GreaterOrEqual(pixel, floats(0.0)), op.Less(pixel, size))
        index = op.Cast(op.Where(inside, pixel, floats(0.0)), to=TensorProto.INT32)
        found.append((index, op.Where(inside, part, floats(0.0))))
    return found


def column(values: Sequence[int]) -> Any:
    """An int64 constant ``(len(values), 1)``."""
    return reshape(ints(*values), -1, 1)
