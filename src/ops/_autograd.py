"""Schemas and gradients shared by all operators of DCNv3 and DCNv4."""

from __future__ import annotations

from typing import Any

from torch import Tensor

WINDOW_SCHEMA = (
    "int groups, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
    "float offset_scale, bool remove_center, bool mask_softmax"
)
FORWARD_SCHEMA = f"(Tensor input, Tensor offset, Tensor mask, {WINDOW_SCHEMA}) -> Tensor"
BACKWARD_SCHEMA = (
    f"(Tensor grad, Tensor input, Tensor offset, Tensor mask, {WINDOW_SCHEMA}, "
    "bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the three tensors and the window for :func:`gradients`."""
    ctx.save_for_backward(*inputs[:3])
    ctx.window = inputs[3:]


def gradients(operator: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments of the forward operator, computed by a backward operator."""
    tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad[: len(tensors)]
    grads = operator(grad, *tensors, *ctx.window, needed)
    needed_grads = (g if is_needed else None for g, is_needed in zip(grads, needed, strict=True))
    return *needed_grads, *(None for _ in ctx.window)


def double_backward(ctx: Any, *grads: Tensor) -> None:
    """Raise an error: second derivatives are not supported."""
    raise RuntimeError(
        "DCNv3 and DCNv4 have no second derivative; differentiate without create_graph=True, or "
        f"use {__package__}.dcnv3_reference or dcnv4_reference, which can be differentiated twice."
    )
