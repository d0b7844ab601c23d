"""Adaptive average pooling as two matrix products.

Their matrices are computed from the size of the feature map at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto

from src.export.operators.building import column, ints, op


def adaptive_avg_pool2d(self: Any, output_size: Sequence[int]) -> Any:
    """Mean over ``output_size`` cells per axis, which may overlap by one pixel."""
    rows = _averages(op.Shape(self, start=2, end=3), output_size[0])  # (o_h, H)
    columns = _averages(op.Shape(self, start=3, end=4), output_size[1])  # (o_w, W)
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _averages(length: Any, cells: int) -> Any:
    """Matrix ``(cells, length)`` whose rows average the pixels ``floor(i n/o) .. ceil((i+1) n/o)``.

    The bounds are computed with integers.
    """
    first = column(range(cells))
    after = column(range(1, cells + 1))
    count = op.Constant(value_int=cells)
    low = op.Div(op.Mul(first, length), count)
    rounded_up = op.Sub(op.Add(op.Mul(after, length), count), op.Constant(value_int=1))
    high = op.Div(rounded_up, count)
    pixels = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    inside = op.And(op.GreaterOrEqual(pixels, low), op.Less(pixels, high))
    weight = op.Cast(inside, to=TensorProto.FLOAT)
    return op.Div(weight, op.ReduceSum(weight, ints(1), keepdims=1))
