"""Convolution of channels-last feature maps ``(N, H, W, C)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.models.layers.precision import autocast_dtype

# torch.compile arranges the inputs and outputs of a convolution as it sees fit, and on a CPU it
# copies a channels-last gradient to another layout. Within an operator of our own the layout stays.
_STRIDES = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
torch.library.define(
    "internimage::conv_nhwc",
    "(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int groups) -> Tensor",
    tags=_STRIDES,
)
torch.library.define(
    "internimage::conv_nhwc_backward",
    "(Tensor grad, Tensor x, Tensor weight, int[2] stride, int[2] padding, int groups,"
    " bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
    tags=_STRIDES,
)


def conv_nhwc(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a channels-last feature map without copying it.

    A contiguous ``(N, H, W, C)`` tensor seen as ``(N, C, H, W)`` is exactly PyTorch's
    channels-last memory format, so both permutations are views.

    Args:
        conv: Convolution with ``in_channels == C``, zero padding and no dilation.
        x: Feature map of shape ``(N, H, W, C)``.

    Returns:
        Feature map of shape ``(N, H', W', C')``.
    """
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if is_compiled and x.device.type == "cpu":
        dtype = autocast_dtype("cpu") or x.dtype
        weight = conv.weight.to(dtype)
        bias = None if conv.bias is None else conv.bias.to(dtype)
        geometry = conv.stride, conv.padding, conv.groups
        compiled: Tensor = torch.ops.internimage.conv_nhwc(x.to(dtype), weight, bias, *geometry)
        return compiled
    out: Tensor = conv(x.permute(0, 3, 1, 2))  # (N, C', H', W')
    return out.permute(0, 2, 3, 1)  # (N, H', W', C')


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int
) -> Tensor:
    out = torch.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, 1, groups)
    return out.permute(0, 2, 3, 1).contiguous()


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    groups: int,
    output_mask: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, *rest = torch.ops.aten.convolution_backward(
        grad.contiguous().permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight,
        [len(weight)],
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        groups,
        output_mask,
    )
    grads = [grad_x.permute(0, 2, 3, 1).contiguous() if output_mask[0] else None, *rest]
    return tuple(x.new_empty(0) if g is None else g.contiguous() for g in grads)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *geometry = inputs
    ctx.save_for_backward(x, weight)
    ctx.geometry = geometry


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.internimage.conv_nhwc_backward(
        grad, *ctx.saved_tensors, *ctx.geometry, needed
    )
    return *(g if is_needed else None for g, is_needed in zip(grads, needed, strict=True)), *(
        None for _ in ctx.geometry
    )


for _name, _function in (("conv_nhwc", _forward), ("conv_nhwc_backward", _backward)):
    torch.library.impl(f"internimage::{_name}", "CPU", _function)
    torch.library.register_fake(f"internimage::{_name}", _function)
torch.library.register_autograd("internimage::conv_nhwc", _gradients, setup_context=_setup_context)
