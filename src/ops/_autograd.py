"""Schemas and gradients shared by all operators of DCNv3 and DCNv4."""

from __future__ import annotations

from typing import Any

import torch
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


def cast_by_autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of autocast, if it is on; float64 stays as it is."""
    device_type = tensor.device.type
    # The query raises for a device without autocast.
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensor
    wide = tensor.dtype == torch.float64
    return tensor if wide else tensor.to(torch.get_autocast_dtype(device_type))


def is_plain(tensor: Tensor, points: Tensor) -> bool:
    """Whether a call with these CPU tensors needs neither gradients, autocast nor tracing.

    Then nothing between the public function and the kernel has to see the operator: no subclass,
    dispatch mode or transform. These queries take a tenth of the time of the checks they replace.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if type(tensor) is not Tensor or type(points) is not Tensor:
        return False
    needs_grad = tensor.requires_grad or points.requires_grad
    return (
        tensor.is_cpu
        and points.is_cpu
        and not (needs_grad and torch.is_grad_enabled())
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
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


def overload_for(operator: Any, grad: Tensor) -> Any:
    """``deterministic`` on a GPU under ``torch.use_deterministic_algorithms``, else ``default``."""
    is_deterministic = grad.is_cuda and torch.are_deterministic_algorithms_enabled()
    return operator.deterministic if is_deterministic else operator.default


def fake_gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Empty gradients of the tensors among ``args``; those that are not wanted have no elements."""
    tensors = (arg for arg in args if isinstance(arg, Tensor))
    wanted = zip(tensors, args[-1], strict=True)
    return tuple(tensor.new_empty(tensor.shape if needed else 0) for tensor, needed in wanted)


def double_backward(ctx: Any, *grads: Tensor) -> None:
    """Raise an error: second derivatives are not supported."""
    raise RuntimeError(
        "DCNv3 and DCNv4 have no second derivative; differentiate without create_graph=True, or "
        f"use {__package__}.dcnv3_reference or dcnv4_reference, which can be differentiated twice."
    )
