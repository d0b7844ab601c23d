"""Calls of the official extension, so that projects with a copy of `ops_dcnv3` change one import.

``from dcnv3_ops import official as DCNv3`` replaces ``import DCNv3`` (the compiled extension);
``from dcnv3_ops.official import DCNv3Function, dcnv3_core_pytorch`` replaces the functions around
it. Names, order of the arguments and results are those of the official code, version 1.1:

    dcnv3_forward(input, offset, mask, *window, im2col_step, remove_center)
    dcnv3_backward(input, offset, mask, *window, grad_output, im2col_step, remove_center)
    DCNv3Function.apply(input, offset, mask, *window, im2col_step, remove_center)
    dcnv3_core_pytorch(input, offset, mask, *window, remove_center)

where ``window`` is ``kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
group, group_channels, offset_scale``. ``remove_center`` may be omitted, as in version 1.0.
``im2col_step`` is ignored: it has no influence on the results. ``mask`` contains weights, to which
no softmax is applied; shapes are those of :func:`dcnv3`.

Unlike the official extension, these functions work on the CPU and in bfloat16, and accept any batch
size and strided ``offset`` and ``mask``. :class:`DCNv3Function` works under ``torch.compile`` and,
like :func:`dcnv3`, casts ``input`` under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._arguments import Window, check_tensors, make_window, output_size
from .dcnv3 import dcnv3
from .grid_sample import dcnv3_grid_sample

_WINDOW_ARGUMENTS = 11


def dcnv3_forward(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
    """Output of shape ``(N, H_out, W_out, group * group_channels)``, without autograd.

    Raises:
        ValueError: If shapes or the window are invalid.
        TypeError: If a dtype is not supported, or the number of arguments is wrong.
    """
    window = _with_step(input, *arguments)
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        return dcnv3(input, offset, mask, **window)


def dcnv3_backward(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> list[Tensor]:
    """Gradients of ``input``, ``offset`` and ``mask``; errors as :func:`dcnv3_forward`."""
    window_arguments, rest = arguments[:_WINDOW_ARGUMENTS], arguments[_WINDOW_ARGUMENTS:]
    if not 2 <= len(rest) <= 3:
        raise TypeError(f"dcnv3_backward takes 16 or 17 arguments, got {3 + len(arguments)}.")
    grad_output, *step = rest
    window = make_window(**_with_step(input, *window_arguments, *step), mask_softmax=False)
    check_tensors(input, offset, mask, window)
    _check_gradient(grad_output, input, window)
    operator = torch.ops.internimage.dcnv3_backward
    is_deterministic = input.is_cuda and torch.are_deterministic_algorithms_enabled()
    backward = operator.deterministic if is_deterministic else operator.default
    with torch.no_grad():
        return list(backward(grad_output, input, offset, mask, *window, (True, True, True)))


def _check_gradient(grad_output: Tensor, input: Tensor, window: Window) -> None:
    n, h, w, c = input.shape
    expected = (n, *output_size(h, w, window), c)
    if tuple(grad_output.shape) != expected:
        raise ValueError(
            f"grad_output must have shape {expected} = (N, H_out, W_out, C), "
            f"got {tuple(grad_output.shape)}."
        )
    if grad_output.device != input.device:
        raise ValueError(
            f"grad_output must be on the device of input, {input.device}, got {grad_output.device}."
        )
    if grad_output.dtype != input.dtype:
        raise TypeError(
            f"grad_output must have the dtype of input, {input.dtype}, got {grad_output.dtype}."
        )


class DCNv3Function(Function):
    """The official autograd function, of which only ``apply`` is defined."""

    @classmethod
    def apply(cls, input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
        """Differentiable output; errors as :func:`dcnv3_forward`."""
        return dcnv3(input, offset, mask, **_with_step(input, *arguments))


def dcnv3_core_pytorch(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
    """Differentiable output with ``grid_sample`` in plain PyTorch (:func:`dcnv3_grid_sample`)."""
    return dcnv3_grid_sample(input, offset, mask, **_window(input, *arguments))


def _with_step(input: Tensor, *arguments: Any) -> dict[str, Any]:
    """Arguments of :func:`dcnv3` from window, ``im2col_step`` and ``remove_center``."""
    if not _WINDOW_ARGUMENTS < len(arguments) <= _WINDOW_ARGUMENTS + 2:
        raise TypeError(
            "expected 11 arguments of the window, im2col_step and remove_center after the tensors, "
            f"got {len(arguments)}."
        )
    remove_center = arguments[_WINDOW_ARGUMENTS + 1 :]
    return _window(input, *arguments[:_WINDOW_ARGUMENTS], *remove_center)


def _window(
    input: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
) -> dict[str, Any]:
    if input.shape[-1] != group * group_channels:
        raise ValueError(
            f"input must have group * group_channels = {group} * {group_channels} channels (its"
            f" last dimension), got {input.shape[-1]}."
        )
    return {
        "groups": group,
        "kernel_size": (kernel_h, kernel_w),
        "stride": (stride_h, stride_w),
        "padding": (pad_h, pad_w),
        "dilation": (dilation_h, dilation_w),
        "offset_scale": offset_scale,
        "remove_center": bool(remove_center),
    }
