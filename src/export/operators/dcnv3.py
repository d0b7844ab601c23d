"""DCNv3 in three forms of standard operators.

- ``deformconv`` is one ``DeformConv`` (opset 19) whose weights are ones, with a group per channel
  and an offset group per group. Its points are numbered row by row with offsets ``(y, x)``, those
  of `src.ops.dcnv3` column by column with offsets ``(x, y)``.
- ``gridsample`` is ``GridSample``, with the groups as images of a batch, and a weighted sum over
  the points; with half-pixel coordinates (``align_corners=0``) it reads pixels outside of the image
  as zero, as DCNv3 does.
- ``gather`` picks the four pixels around each point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto
from onnxscript.onnx_opset import opset19

from src.export.operators.building import affine, axis, floats, ints, op, reshape, sampled_rows

op19: Any = opset19


def deformconv(
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
    weights = reshape(mask, 0, 0, 0, groups, len(taps))
    if mask_softmax:
        weights = op.Softmax(weights, axis=-1)
    channels_first = [0, 3, 1, 2]
    weights = op.Transpose(reshape(weights, 0, 0, 0, -1), perm=channels_first)
    shifts = op.Transpose(offset, perm=channels_first)
    order = _row_by_row(kernel_size, remove_center)
    group_starts = [group * len(taps) for group in range(groups)]
    points = [start + (point or 0) for start in group_starts for point in order]
    weights = op.Gather(weights, ints(*points), axis=1)
    shifts = op.Gather(shifts, ints(*(2 * i + xy for i in points for xy in (1, 0))), axis=1)
    if remove_center:
        kept = [float(point is not None) for point in order] * groups
        weights = op.Mul(weights, reshape(floats(*kept), -1, 1, 1))
    if offset_scale != 1.0:  # the operator scales the window too
        window = _row_by_row_taps(kernel_size, dilation)
        grown = [(offset_scale - 1.0) * value for tap in window for value in tap] * groups
        scaled = op.Mul(shifts, floats(offset_scale))
        shifts = op.Add(scaled, reshape(floats(*grown), -1, 1, 1))
    channels = _channels(input)
    summed = op19.DeformConv(
        op.Transpose(input, perm=channels_first),  # (N, C, H, W)
        op.Expand(floats(1.0), ints(channels, 1, *kernel_size)),
        shifts,
        None,
        weights,
        dilations=list(dilation),
        group=channels,
        kernel_shape=list(kernel_size),
        offset_group=groups,
        pads=[*padding, *padding],
        strides=list(stride),
    )
    return op.Transpose(summed, perm=[0, 2, 3, 1])  # (N, H', W', C)


def _row_by_row(kernel_size: Sequence[int], remove_center: bool) -> list[int | None]:
    """Our number of every point of the window, row by row; ``None`` for a missing centre."""
    kernel_h, kernel_w = kernel_size
    centre = kernel_h * kernel_w // 2
    numbers: list[int | None] = []
    for row in range(kernel_h):
        for column in range(kernel_w):
            number = column * kernel_h + row
            if remove_center and number >= centre:
                numbers.append(number - 1 if number > centre else None)
            else:
                numbers.append(number)
    return numbers


def _row_by_row_taps(kernel_size: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Displacement ``(y, x)`` of every tap from the window centre, row by row."""
    return sorted((y, x) for x, y in _taps(kernel_size, dilation, remove_center=False))


def gridsample(
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
    size = op.Cast(op.Gather(op.Shape(input), ints(2, 1)), to=TensorProto.FLOAT)  # (2,) W, H
    # Coordinates relative to the image, whose outer edges are -1 and 1.
    shifts = _by_group(offset, groups, points, 2)
    regular = _regular_grid(offset, taps, kernel_size, stride, padding, dilation, offset_scale)
    regular = op.Sub(op.Div(affine(regular, 2.0, 1.0), size), floats(1.0))  # (H', W', P, 2)
    factor = op.Div(floats(2.0 * offset_scale), size)
    grid = op.Add(op.Mul(shifts, factor), regular)
    cells = op.ReduceProd(op.Shape(offset, start=1, end=3), ints(0), keepdims=1)  # (1,) H' * W'
    images = op.Transpose(reshape(input, 0, 0, 0, groups, -1), perm=[0, 3, 4, 1, 2])
    image_shape = op.Concat(ints(-1), op.Shape(images, start=2, end=5), axis=0)
    samples = op.GridSample(
        op.Reshape(images, image_shape),  # (N * G, C/G, H, W)
        reshape(grid, -1, cells, points, 2),
        align_corners=0,
        mode="bilinear",
        padding_mode="zeros",
    )  # (N * G, C/G, H' * W', P)
    weights = _weights(mask, groups, points, mask_softmax)
    weighted = op.Mul(samples, reshape(weights, -1, 1, cells, points))
    summed = op.ReduceSum(weighted, ints(3), keepdims=0)  # (N * G, C/G, H' * W')
    pixels = op.Transpose(reshape(summed, axis(input, 0), -1, cells), perm=[0, 2, 1])
    shape = op.Concat(op.Shape(offset, start=0, end=3), ints(-1), axis=0)
    return op.Reshape(pixels, shape)  # (N, H', W', C)


def gather(
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
    regular = _regular_grid(offset, taps, kernel_size, stride, padding, dilation, offset_scale)
    shifts = op.Mul(_by_group(offset, groups, len(taps), 2), floats(offset_scale))
    locations = op.Add(shifts, regular)  # (N, G, H', W', P, 2)
    x, y = (op.Gather(locations, op.Constant(value_int=i), axis=5) for i in (0, 1))
    width, height = (op.Cast(axis(input, i), to=TensorProto.FLOAT) for i in (2, 1))
    # Every group of every image is an image whose pixels are rows.
    images = op.Transpose(reshape(input, 0, 0, 0, groups, -1), perm=[0, 3, 1, 2, 4])
    rows = reshape(images, -1, _channels(input) // groups)
    pixels = op.Mul(axis(input, 1), axis(input, 2))
    start = op.Range(
        op.Constant(value_int=0),
        op.Squeeze(op.Mul(op.Mul(axis(input, 0), ints(groups)), pixels)),
        op.Squeeze(pixels),
    )
    start = reshape(start, -1, groups, 1, 1, 1)
    weights = _weights(mask, groups, len(taps), mask_softmax)
    summed = sampled_rows(rows, start, x, y, width, height, weights)  # (N, G, H', W', C/G)
    return reshape(op.Transpose(summed, perm=[0, 2, 3, 1, 4]), 0, 0, 0, -1)


def _by_group(values: Any, groups: int, points: int, *rest: int) -> Any:
    """``(N, H', W', G * P * rest) -> (N, G, H', W', P, rest)``."""
    split = reshape(values, 0, 0, 0, groups, points, *rest)
    return op.Transpose(split, perm=[0, 3, 1, 2, 4, *range(5, 5 + len(rest))])


def _weights(mask: Any, groups: int, points: int, mask_softmax: bool) -> Any:
    """Weight of every point, ``(N, G, H', W', P)``."""
    weights = reshape(mask, 0, 0, 0, groups, points)
    if mask_softmax:
        weights = op.Softmax(weights, axis=-1)
    return op.Transpose(weights, perm=[0, 3, 1, 2, 4])


def _channels(input: Any) -> int:
    channels = input.shape[3]
    if not isinstance(channels, int):
        raise TypeError(f"the number of channels must be known, got {channels}")
    return channels


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
    for side in (1, 0):  # x lies along the columns, y along the rows
        half = dilation[side] * (kernel_size[side] - 1) // 2
        last = op.Squeeze(axis(offset, side + 1))
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        centre = op.Cast(op.Range(zero, last, one), to=TensorProto.FLOAT)
        centre = affine(centre, float(stride[side]), float(half - padding[side]))
        shape = [1, -1, 1, 1] if side == 1 else [-1, 1, 1, 1]
        unit = [1.0, 0.0] if side == 1 else [0.0, 1.0]
        axes.append(op.Mul(reshape(centre, *shape), floats(*unit)))
    flat = [scale * value for tap in taps for value in tap]
    return op.Add(op.Add(axes[0], axes[1]), reshape(floats(*flat), -1, 2))
