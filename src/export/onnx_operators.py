"""Operators that ONNX lacks, as graphs of standard ONNX operators (opset 18).

DCNv3 becomes ``GridSample`` with bilinear interpolation and zero padding, with the groups as images
of a batch, and a weighted sum over the sampling locations. ``GridSample`` with half-pixel
coordinates (``align_corners=0``) reads pixels outside of the image as zero, as DCNv3 does.
Multi-scale deformable attention is the same on each level, with the heads as images of a batch.
Adaptive average pooling becomes two matrix products whose matrices are computed from the size at
run time.

The exporter calls these functions with symbolic values in place of tensors; arguments that are
annotated as numbers are attributes of the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto
from onnxscript.onnx_opset import opset18

import src.ops  # noqa: F401  registers the operators

op: Any = opset18  # annotated for eager values, while these functions build graphs


def dcnv3(
    input: Any,
    offset: Any,
    mask: Any,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    mask_softmax: bool,
) -> Any:
    """See `src.ops.dcnv3`."""
    taps = _taps(kernel_size, dilation, remove_center)
    points = len(taps)
    size = op.Cast(
        op.Gather(op.Shape(input), op.Constant(value_ints=[2, 1])), to=TensorProto.FLOAT
    )  # (2,) W, H
    # Coordinates relative to the image, whose outer edges are -1 and 1.
    shifts = op.Transpose(
        op.Reshape(offset, op.Constant(value_ints=[0, 0, 0, groups, points, 2])),
        perm=[0, 3, 1, 2, 4, 5],
    )  # (N, G, H', W', P, 2)
    regular = _regular_grid(offset, taps, kernel_size, stride, padding, dilation, offset_scale)
    regular = op.Sub(op.Div(_affine(regular, 2.0, 1.0), size), _constant([1.0]))  # (H', W', P, 2)
    factor = op.Div(_constant([2.0 * offset_scale]), size)
    grid = op.Add(op.Mul(shifts, factor), regular)
    cells = op.ReduceProd(
        op.Shape(offset, start=1, end=3), op.Constant(value_ints=[0]), keepdims=1
    )  # (1,) H' * W'
    minus_one = op.Constant(value_ints=[-1])
    grid_shape = op.Concat(minus_one, cells, op.Constant(value_ints=[points, 2]), axis=0)
    images = op.Transpose(
        op.Reshape(input, op.Constant(value_ints=[0, 0, 0, groups, -1])), perm=[0, 3, 4, 1, 2]
    )  # (N, G, C/G, H, W)
    image_shape = op.Concat(minus_one, op.Shape(images, start=2, end=5), axis=0)
    samples = op.GridSample(
        op.Reshape(images, image_shape),
        op.Reshape(grid, grid_shape),
        align_corners=0,
        mode="bilinear",
        padding_mode="zeros",
    )  # (N * G, C/G, H' * W', P)
    weights = op.Reshape(mask, op.Constant(value_ints=[0, 0, 0, groups, points]))
    if mask_softmax:
        weights = op.Softmax(weights, axis=-1)
    weights = op.Transpose(weights, perm=[0, 3, 1, 2, 4])  # (N, G, H', W', P)
    one = op.Constant(value_ints=[1])
    weight_shape = op.Concat(minus_one, one, cells, op.Constant(value_ints=[points]), axis=0)
    summed = op.ReduceSum(
        op.Mul(samples, op.Reshape(weights, weight_shape)), op.Constant(value_ints=[3]), keepdims=0
    )  # (N * G, C/G, H' * W')
    channels_first = op.Concat(op.Shape(input, start=0, end=1), minus_one, cells, axis=0)
    pixels = op.Transpose(op.Reshape(summed, channels_first), perm=[0, 2, 1])  # (N, H' * W', C)
    shape = op.Concat(op.Shape(offset, start=0, end=3), minus_one, axis=0)
    return op.Reshape(pixels, shape)  # (N, H', W', C)


def _taps(
    kernel_size: Sequence[int], dilation: Sequence[int], remove_center: bool
) -> list[tuple[int, int]]:
    """Displacement ``(x, y)`` of every tap from the window centre, column by column."""
    kernel_h, kernel_w = kernel_size
    half_h, half_w = (dilation[axis] * (kernel_size[axis] - 1) // 2 for axis in (0, 1))
    return [
        (i * dilation[1] - half_w, j * dilation[0] - half_h)
        for i in range(kernel_w)
        for j in range(kernel_h)
        if not (remove_center and i == kernel_w // 2 and j == kernel_h // 2)
    ]


def _regular_grid(
    offset: Any,
    taps: list[tuple[int, int]],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: float,
) -> Any:
    """Sampling locations without offsets in pixels of the image, ``(H', W', P, 2)``."""
    axes = []
    for axis in (1, 0):  # x lies along the columns, y along the rows
        half = dilation[axis] * (kernel_size[axis] - 1) // 2
        last = op.Squeeze(op.Shape(offset, start=axis + 1, end=axis + 2))
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        centre = op.Cast(op.Range(zero, last, one), to=TensorProto.FLOAT)
        centre = _affine(centre, float(stride[axis]), float(half - padding[axis]))
        shape = [1, -1, 1, 1] if axis == 1 else [-1, 1, 1, 1]
        unit = [1.0, 0.0] if axis == 1 else [0.0, 1.0]
        axes.append(op.Mul(op.Reshape(centre, op.Constant(value_ints=shape)), _constant(unit)))
    flat = [scale * value for tap in taps for value in tap]
    displacement = op.Reshape(_constant(flat), op.Constant(value_ints=[len(taps), 2]))
    return op.Add(op.Add(axes[0], axes[1]), displacement)


def ms_deform_attn(value: Any, sides: Any, locations: Any, weights: Any) -> Any:
    """See `src.ops.ms_deform_attn`; ``sides``, heights and widths, may be symbolic."""
    levels = len(sides) // 2
    minus_one, zero, one = (op.Constant(value_ints=[number]) for number in (-1, 0, 1))
    # (N, heads, Q, levels, P, 2): the edges of a feature map are -1 and 1 instead of 0 and 1.
    grid = op.Transpose(_affine(locations, 2.0, -1.0), perm=[0, 2, 1, 3, 4, 5])
    factors = op.Transpose(weights, perm=[0, 2, 1, 3, 4])  # (N, heads, Q, levels, P)
    images = op.Transpose(value, perm=[0, 2, 3, 1])  # (N, heads, C, S)
    queries_and_points = op.Concat(
        op.Shape(locations, start=1, end=2), op.Shape(locations, start=4, end=5), axis=0
    )
    grid_shape = op.Concat(minus_one, queries_and_points, op.Constant(value_ints=[2]), axis=0)
    weight_shape = op.Concat(minus_one, one, queries_and_points, axis=0)
    channels = op.Shape(value, start=3, end=4)
    start, total = zero, None
    for level in range(levels):
        size = op.Concat(*(_length(side) for side in sides[2 * level : 2 * level + 2]), axis=0)
        end = op.Add(start, op.ReduceProd(size, keepdims=1))
        image = op.Slice(images, start, end, op.Constant(value_ints=[3]))
        samples = op.GridSample(
            op.Reshape(image, op.Concat(minus_one, channels, size, axis=0)),
            op.Reshape(op.Gather(grid, op.Constant(value_int=level), axis=3), grid_shape),
            align_corners=0,
            mode="bilinear",
            padding_mode="zeros",
        )  # (N * heads, C, Q, P)
        factor = op.Gather(factors, op.Constant(value_int=level), axis=3)
        weighted = op.Mul(samples, op.Reshape(factor, weight_shape))
        part = op.ReduceSum(weighted, op.Constant(value_ints=[3]), keepdims=0)
        total = part if total is None else op.Add(total, part)  # (N * heads, C, Q)
        start = end
    batch, queries = (op.Shape(locations, start=axis, end=axis + 1) for axis in (0, 1))
    shape = op.Concat(batch, minus_one, queries, axis=0)
    return op.Transpose(op.Reshape(total, shape), perm=[0, 2, 1])  # (N, Q, heads * C)


def _length(side: Any) -> Any:
    """A number or a scalar as a value of shape ``(1,)``."""
    if isinstance(side, int):
        return op.Constant(value_ints=[side])
    return op.Reshape(side, op.Constant(value_ints=[1]))


def adaptive_avg_pool2d(self: Any, output_size: Sequence[int]) -> Any:
    """Mean over ``output_size`` cells per axis, which may overlap by one pixel."""
    rows = _averages(op.Shape(self, start=2, end=3), output_size[0])  # (o_h, H)
    columns = _averages(op.Shape(self, start=3, end=4), output_size[1])  # (o_w, W)
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _averages(length: Any, cells: int) -> Any:
    """Matrix ``(cells, length)`` whose rows average the pixels ``floor(i n/o) .. ceil((i+1) n/o)``.

    The bounds are computed with integers.
    """
    first = op.Constant(value=_column(range(cells)))
    after = op.Constant(value=_column(range(1, cells + 1)))
    count = op.Constant(value_int=cells)
    low = op.Div(op.Mul(first, length), count)
    rounded_up = op.Sub(op.Add(op.Mul(after, length), count), op.Constant(value_int=1))
    high = op.Div(rounded_up, count)
    pixels = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    inside = op.And(op.GreaterOrEqual(pixels, low), op.Less(pixels, high))
    weight = op.Cast(inside, to=TensorProto.FLOAT)
    return op.Div(weight, op.ReduceSum(weight, op.Constant(value_ints=[1]), keepdims=1))


def _column(values: range) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(torch.tensor(list(values))[:, None].numpy())


def _affine(x: Any, factor: float, summand: float) -> Any:
    return op.Add(op.Mul(x, _constant([factor])), _constant([summand]))


def _constant(values: list[float]) -> Any:
    return op.Constant(value_floats=values)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.internimage.dcnv3.default: dcnv3,
    torch.ops.internimage.ms_deform_attn.default: ms_deform_attn,
    torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
}
"""For ``custom_translation_table`` of `torch.onnx.export`."""
