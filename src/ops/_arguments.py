"""Argument checks of DCNv3 and DCNv4, shared by all implementations.

They run at every call and take microseconds; messages are formatted only in case of an error. Sizes
may be symbolic (``torch.SymInt``), so they are never converted to plain integers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

Pair = tuple[int, int]

FLOATING_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)
MAX_POINTS = 1024  # kMaxPoints in csrc/dcnv3.h


class Window(NamedTuple):
    """All arguments of a DCNv3 call that are not tensors, in the order of the schema."""

    groups: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    offset_scale: float
    remove_center: bool
    mask_softmax: bool

    @property
    def points(self) -> int:
        """Sampling points per group and output pixel."""
        return self.kernel_size[0] * self.kernel_size[1] - self.remove_center


def make_window(
    groups: int,
    kernel_size: int | Pair,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    offset_scale: float,
    remove_center: bool,
    mask_softmax: bool,
) -> Window:
    """Expand integers to pairs, and raise ``ValueError`` for an invalid window."""
    kernel = to_pair(kernel_size, "kernel_size", 1)
    window = Window(
        groups,
        kernel,
        to_pair(stride, "stride", 1),
        to_pair(padding, "padding", 0),
        to_pair(dilation, "dilation", 1),
        float(offset_scale),
        bool(remove_center),
        bool(mask_softmax),
    )
    if remove_center and (kernel[0] != kernel[1] or kernel[0] % 2 == 0 or kernel[0] == 1):
        raise ValueError(
            f"remove_center=True needs an odd square kernel of at least 3, "
            f"got kernel_size={kernel}."
        )
    if kernel[0] * kernel[1] > MAX_POINTS:
        raise ValueError(
            f"kernel_size must have at most {MAX_POINTS} points, got {kernel[0]} x {kernel[1]}."
        )
    return window


def as_window(args: tuple[Any, ...]) -> Window:
    """Window from the arguments of the operator; the dispatcher converts pairs to lists."""
    groups, kernel_size, stride, padding, dilation, *rest = args
    return Window(groups, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), *rest)


def to_pair(value: int | Pair, name: str, least: int) -> Pair:
    """``(height, width)`` from an integer or a pair, each at least ``least``."""
    if type(value) is int:
        pair = (value, value)
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        pair = (value[0], value[1])
    else:
        raise ValueError(f"{name} must be an integer or a (height, width) pair, got {value!r}.")
    if pair[0] < least or pair[1] < least:
        raise ValueError(f"{name} must be at least {least} in both directions, got {value!r}.")
    return pair


def output_size(height: int, width: int, window: Window) -> Pair:
    """Output height and width, as for a convolution."""
    (kernel_h, kernel_w), (stride_h, stride_w) = window.kernel_size, window.stride
    (pad_h, pad_w), (dilation_h, dilation_w) = window.padding, window.dilation
    return (
        (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1,
        (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1,
    )


def check_tensors(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Window,
) -> None:
    """Raise ``ValueError`` or ``TypeError`` if shapes, dtypes or devices do not match."""
    dtype, device = input.dtype, input.device
    batch, out_height, out_width = _check_input(input, window)
    columns = window.groups * window.points
    if offset.dtype != dtype or offset.device != device:
        _check_kind("offset", offset, input)
    if mask.dtype != dtype or mask.device != device:
        _check_kind("mask", mask, input)
    if offset.shape != (batch, out_height, out_width, 2 * columns):
        _raise_shape("offset", offset, (batch, out_height, out_width, 2 * columns), " * 2")
    if mask.shape != (batch, out_height, out_width, columns):
        _raise_shape("mask", mask, (batch, out_height, out_width, columns), "")


def check_packed(input: Tensor, offset_mask: Tensor, window: Window) -> None:
    """Raise ``ValueError`` or ``TypeError`` if the tensors of a DCNv4 call do not match."""
    batch, out_height, out_width = _check_input(input, window)
    if offset_mask.dtype != input.dtype or offset_mask.device != input.device:
        _check_kind("offset_mask", offset_mask, input)
    expected = (batch, out_height, out_width, row_width(window))
    if offset_mask.shape != expected:
        raise ValueError(
            f"offset_mask must have shape {expected} = (N, H_out, W_out, groups * points * 3, "
            f"rounded up to a multiple of 8), got {tuple(offset_mask.shape)}."
        )


def row_width(window: Window) -> int:
    """Columns of a packed row: three per point, rounded up to a multiple of 8."""
    return -(-window.groups * window.points * 3 // 8) * 8


def _check_input(input: Tensor, window: Window) -> tuple[int, int, int]:
    """Check the values; returns batch size, height and width of the output."""
    groups = window.groups
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, H, W, C), got {tuple(input.shape)}.")
    if input.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"input must be float64, float32, float16 or bfloat16, got {_name(input.dtype)}."
        )
    batch, height, width, channels = input.shape
    if groups < 1 or channels < 1 or channels % groups != 0:
        raise ValueError(
            f"groups must divide the {channels} channels of input (its last dimension), "
            f"got groups={groups}."
        )
    out_height, out_width = output_size(height, width, window)
    if height < 1 or width < 1 or out_height < 1 or out_width < 1:
        raise ValueError(
            f"input of {height} x {width} pixels is too small for the window (kernel_size="
            f"{window.kernel_size}, dilation={window.dilation}, padding={window.padding})."
        )
    return batch, out_height, out_width


def _check_kind(name: str, tensor: Tensor, input: Tensor) -> None:
    is_half = input.dtype in HALF_DTYPES
    if tensor.dtype != input.dtype and not (is_half and tensor.dtype == torch.float32):
        accepted = _name(input.dtype) + (" or float32" if is_half else "")
        raise TypeError(
            f"{name} must be {accepted} for {_name(input.dtype)} input, got {_name(tensor.dtype)}."
        )
    if tensor.device != input.device:
        raise ValueError(
            f"{name} must be on the device of input, {input.device}, got {tensor.device}."
        )


def _raise_shape(name: str, tensor: Tensor, expected: tuple[int, ...], factor: str) -> NoReturn:
    raise ValueError(
        f"{name} must have shape {expected} = (N, H_out, W_out, groups * points{factor}), "
        f"got {tuple(tensor.shape)}."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
