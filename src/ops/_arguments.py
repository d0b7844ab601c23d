"""Argument rules of the DCNv3 operator, shared by every implementation.

The window geometry (pairs, number of points, output size) and the checks whose messages users read. Sizes may be
symbolic (``torch.SymInt``), so nothing here turns them into plain integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[int, int]

FLOATING_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)


def to_pair(value: int | tuple[int, int], name: str) -> Pair:
    """Expand an integer to ``(height, width)``; a pair is returned as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    raise ValueError(f"{name} must be an integer or a (height, width) pair, got {value!r}.")


def num_points(kernel_size: Pair, remove_center: bool) -> int:
    """Sampling points per group and output pixel."""
    return kernel_size[0] * kernel_size[1] - int(remove_center)


def output_size(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Output height and width of a window sliding over ``size``, as for a convolution."""
    height, width = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return height, width


def check_window(
    kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, remove_center: bool
) -> None:
    """Raise ``ValueError`` for a window that does not exist."""
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if pair[0] < least or pair[1] < least:
            raise ValueError(f"{name} must be at least {least} in both directions, got {pair}.")
    if remove_center and (kernel_size[0] != kernel_size[1] or kernel_size[0] % 2 == 0 or kernel_size[0] < 3):
        raise ValueError(
            f"remove_center=True needs an odd square kernel of at least 3, got kernel_size={kernel_size}."
        )


def check_tensors(
    input: Tensor,  # noqa: A002
    offset: Tensor,
    mask: Tensor,
    groups: int,
    points: int,
    out_size: Pair,
) -> None:
    """Raise ``ValueError`` or ``TypeError`` in one sentence if the tensors do not fit each other."""
    if input.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"input must be float64, float32, float16 or bfloat16, got {_name(input.dtype)}."
        )
    _, height, width, channels = input.shape
    if groups < 1 or channels % groups != 0:
        raise ValueError(
            f"groups must divide the {channels} channels of input (last axis), got groups={groups}."
        )
    if height < 1 or width < 1 or out_size[0] < 1 or out_size[1] < 1:
        raise ValueError(
            f"the window does not fit: input of {height} x {width} pixels would give an output of "
            f"{out_size[0]} x {out_size[1]}; use a smaller kernel_size or dilation, or more padding."
        )
    for name, tensor, values in (("offset", offset, 2), ("mask", mask, 1)):
        if tensor.dtype != input.dtype and not (
            tensor.dtype == torch.float32 and input.dtype in HALF_DTYPES
        ):
            accepted = _name(input.dtype) + (" or float32" if input.dtype in HALF_DTYPES else "")
            raise TypeError(
                f"{name} must be {accepted} beside {_name(input.dtype)} input, got {_name(tensor.dtype)}."
            )
        if tensor.device != input.device:
            raise ValueError(
                f"{name} must be on the device of input, {input.device}, got {tensor.device}."
            )
        expected = (input.shape[0], *out_size, groups * points * values)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} must have shape {tuple(expected)} = (N, H_out, W_out, groups * points"
                f"{' * 2' if values == 2 else ''}), got {tuple(tensor.shape)}."
            )


def check_rank(input: Tensor) -> None:  # noqa: A002
    """Raise ``ValueError`` unless ``input`` has the four axes (N, H, W, C)."""
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, H, W, C), got {tuple(input.shape)}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
