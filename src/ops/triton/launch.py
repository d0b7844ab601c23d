"""Launch the Triton kernels: layouts, block sizes, accumulation buffers.

The tensors have been checked by :func:`src.ops.dcnv3` or :func:`src.ops.dcnv4`. It works on NVIDIA
and AMD GPUs, and on CPU tensors if ``kernels`` was imported with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from .._arguments import Window, output_size
from ..fixed_point import fixed_point_unit, from_fixed_point
from ..packed import unpack
from . import input_gradient, kernels

MAX_BLOCK = 64  # channels per program
MAX_ROWS = 64
THREADS = 128  # four warps, Triton's default

# Of the input gradient (input_gradient.py): one tile of a tensor core for each row.
MAX_SPAN = 16
PRODUCT_ROWS = 16
PRODUCT_POINTS = 16
MAX_PRODUCT_CHANNELS = 32


class Points(NamedTuple):
    """Offsets and masks, or their gradients, with one row per output pixel.

    Attributes:
        offset: Rows ``(..., K)`` that start with the offsets of the first group.
        mask: Rows that start with its mask.
        is_packed: A group of both is ``3 * P`` values wide, as in DCNv4.
    """

    offset: Tensor
    mask: Tensor
    is_packed: bool = False

    @classmethod
    def separate(cls, offset: Tensor, mask: Tensor) -> Points:
        """Of two tensors ``(N, H_out, W_out, K)``."""
        return cls(_as_rows(offset), _as_rows(mask))

    @classmethod
    def packed(cls, rows: Tensor, window: Window) -> Points:
        """Of packed rows ``(N, H_out, W_out, K)``."""
        rows = _as_rows(rows)
        return cls(rows, rows[:, 2 * window.points :], True)

    @property
    def strides(self) -> tuple[int, int]:
        """Distances of the rows."""
        return self.offset.stride(-2), self.mask.stride(-2)


def forward(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Output of shape ``(N, H_out, W_out, C)`` in the dtype of ``input``."""
    return _forward(input, Points.separate(offset, mask), window)


def forward_packed(input: Tensor, offset_mask: Tensor, window: Window) -> Tensor:
    """Output of DCNv4."""
    return _forward(input, Points.packed(offset_mask, window), window)


def _forward(input: Tensor, points: Points, window: Window) -> Tensor:
    n, h, w, c = input.shape
    h_out, w_out = output_size(h, w, window)
    output = input.new_empty(n, h_out, w_out, c)
    if n == 0:
        return output
    constants = _constants(input, window, points.is_packed)
    rows = n * h_out * w_out * window.groups
    blocks = triton.cdiv(c // window.groups, constants["BLOCK"])
    _traceable(kernels.forward)[(triton.cdiv(rows, constants["ROWS"]), blocks)](
        input.contiguous(),
        points.offset,
        points.mask,
        output,
        rows,
        h,
        w,
        h_out,
        w_out,
        *points.strides,
        WIDE=_is_wide(rows),
        **constants,
    )
    return output


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Window,
    output_mask: tuple[bool, bool, bool],
    *,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``offset`` and ``mask`` (empty if not needed).

    The input gradient is written by the blocks that own feature maps, or accumulated in float32
    (float64 for float64). With ``deterministic`` it is accumulated in fixed point
    (:mod:`src.ops.fixed_point`) instead, so it is bitwise reproducible. If ``grad`` is not finite,
    the whole input gradient is then NaN.
    """
    if input.shape[0] == 0:
        return _empty_gradients(input, offset, mask, output_mask)
    grad, input = grad.contiguous(), input.contiguous()
    points = Points.separate(offset, mask)
    grad_input, grad_offset, grad_mask = _empty_gradients(
        input, offset, mask, (False, *output_mask[1:])
    )
    if output_mask[1] or output_mask[2]:
        # What is not needed is not written.
        gradients = Points(
            grad_offset if output_mask[1] else points.offset,
            grad_mask if output_mask[2] else points.mask,
        )
        _point_gradients(grad, input, points, gradients, window, output_mask)
    if output_mask[0]:
        unit = None
        if deterministic and not owns_maps(input):
            unit = fixed_point_unit(grad, mask, window)
        grad_input = _input_gradient(grad, input, points, unit, window)
    return grad_input, grad_offset, grad_mask


def backward_packed(
    grad: Tensor,
    input: Tensor,
    offset_mask: Tensor,
    window: Window,
    output_mask: tuple[bool, bool],
    *,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``input`` and of the packed rows; see `backward`."""
    needs_input, needs_rows = output_mask
    grad_input = input.new_empty(input.shape if needs_input else 0)
    # The columns after the last group stay zero.
    grad_rows = offset_mask.new_zeros(offset_mask.shape if needs_rows else 0)
    if input.shape[0] == 0:
        return grad_input, grad_rows
    grad, input = grad.contiguous(), input.contiguous()
    points = Points.packed(offset_mask, window)
    if needs_rows:
        gradients = Points.packed(grad_rows, window)
        _point_gradients(grad, input, points, gradients, window, (False, True, True))
    if needs_input:
        unit = None
        if deterministic and not owns_maps(input):
            unit = fixed_point_unit(grad, unpack(offset_mask, window)[1], window)
        grad_input = _input_gradient(grad, input, points, unit, window)
    return grad_input, grad_rows


def owns_maps(input: Tensor) -> bool:
    """Whether a block of the backward kernel owns a feature map: it fits into one span."""
    return max(input.shape[1:3]) <= MAX_SPAN


def _empty_gradients(
    input: Tensor, offset: Tensor, mask: Tensor, output_mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = zip((input, offset, mask), output_mask, strict=True)
    first, second, third = (t.new_empty(t.shape if needed else 0) for t, needed in tensors)
    return first, second, third


def _point_gradients(
    grad: Tensor,
    input: Tensor,
    points: Points,
    gradients: Points,
    window: Window,
    output_mask: tuple[bool, bool, bool],
) -> None:
    n, h, w, _ = input.shape
    h_out, w_out = grad.shape[1:3]
    accumulate = _accumulation_type(input)
    needs_scratch = window.mask_softmax and gradients.mask.dtype != accumulate
    scratch = gradients.mask
    if needs_scratch:
        scratch = scratch.new_empty(*scratch.shape[:-1], scratch.stride(-2), dtype=accumulate)
    constants = _constants(input, window, points.is_packed)
    count = n * h_out * w_out * window.groups
    _traceable(kernels.backward)[(triton.cdiv(count, constants["ROWS"]),)](
        grad,
        input,
        points.offset,
        points.mask,
        gradients.offset,
        gradients.mask,
        scratch,
        count,
        h,
        w,
        h_out,
        w_out,
        *points.strides,
        *gradients.strides,
        WIDE=_is_wide(count),
        WANT_OFFSET=output_mask[1],
        WANT_MASK=output_mask[2],
        **constants,
    )


def _input_gradient(
    grad: Tensor, input: Tensor, points: Points, unit: Tensor | None, window: Window
) -> Tensor:
    n, h, w, c = input.shape
    h_out, w_out = grad.shape[1:3]
    is_owned = owns_maps(input)
    if is_owned:
        sums = torch.empty_like(input)
    else:
        sums = torch.zeros_like(
            input, dtype=_accumulation_type(input) if unit is None else torch.int64
        )
    constants = _product_constants(
        input, window, points.is_packed, is_amd=torch.version.hip is not None
    )
    tiles_y, tiles_x = 1, 1
    if not is_owned:
        tiles_y, tiles_x = (
            triton.cdiv(size, tile)
            for size, tile in zip((h_out, w_out), constants["TILE"], strict=True)
        )
    blocks = triton.cdiv(c // window.groups, constants["BLOCK"])
    _traceable(input_gradient.backward_input)[(n * tiles_y * tiles_x * window.groups, blocks)](
        grad,
        points.offset,
        points.mask,
        unit,
        sums,
        h,
        w,
        h_out,
        w_out,
        tiles_y,
        tiles_x,
        *points.strides,
        DETERMINISTIC=unit is not None,
        num_warps=product_warps(input.dtype),
        **constants,
    )
    return sums.to(input.dtype) if unit is None else from_fixed_point(sums, unit, input.dtype)


def _product_constants(
    input: Tensor, window: Window, is_packed: bool = False, *, is_amd: bool
) -> dict[str, Any]:
    """Compile-time constants of the input gradient."""
    constants = _constants(input, window, is_packed)
    block = min(MAX_PRODUCT_CHANNELS, constants["BLOCK"])
    return (
        constants
        | {
            "ROWS": PRODUCT_ROWS,
            "BLOCK": max(16, block),  # the narrowest product
            "POINT_BLOCK": PRODUCT_POINTS,
            "TILE": tuple(_tile(axis, window) for axis in (0, 1)),
            "SPAN": tuple(min(MAX_SPAN, triton.next_power_of_2(size)) for size in input.shape[1:3]),
            "OWNS": owns_maps(input),
            "PRECISION": "ieee" if is_amd else "tf32x3",  # both have the accuracy of float32
        }
    )


def product_warps(dtype: torch.dtype) -> int:
    """Warps of a block of the input gradient; with four, float64 would spill registers."""
    return 8 if dtype == torch.float64 else 4


def _tile(axis: int, window: Window) -> int:
    """Output pixels on one side of a tile: 8, or 4 if a wide window needs more of the span."""
    reach = window.dilation[axis] * (window.kernel_size[axis] - 1) * abs(window.offset_scale)
    return 8 if 7 * window.stride[axis] + reach + 4 <= MAX_SPAN else 4


def _constants(input: Tensor, window: Window, is_packed: bool = False) -> dict[str, Any]:
    """Compile-time constants of the kernels: the window, and blocks of 16 bytes per thread."""
    channels = input.shape[-1] // window.groups
    block = min(MAX_BLOCK, triton.next_power_of_2(channels))
    values = THREADS * 16 // input.element_size()
    return {
        "GROUPS": window.groups,
        "CHANNELS": channels,
        "KERNEL": window.kernel_size,
        "STRIDE": window.stride,
        "PAD": window.padding,
        "DILATION": window.dilation,
        "SCALE": window.offset_scale,
        "REMOVE_CENTER": window.remove_center,
        "SOFTMAX": window.mask_softmax,
        "POINTS": window.points,
        "OFFSET_GROUP": (3 if is_packed else 2) * window.points,
        "MASK_GROUP": (3 if is_packed else 1) * window.points,
        "ROWS": min(MAX_ROWS, values // block),
        "BLOCK": block,
        "ACC": tl.float64 if input.dtype == torch.float64 else tl.float32,
    }


def _accumulation_type(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _as_rows(tensor: Tensor) -> Tensor:
    """``(N, H, W, K)`` as ``(N * H * W, K)`` with a dense last axis; a view if that is possible."""
    rows = tensor.flatten(0, 2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _is_wide(rows: int) -> bool:
    return bool(rows + MAX_ROWS >= 2**31)


def _traceable(kernel: Any) -> Any:
    return wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
