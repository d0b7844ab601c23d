"""Linear layers for training on a CPU: gradients of weights, and a whole MLP as one operator.

An MLP is two linear layers with an exact GELU between them. The compiled library runs both on a few
rows at a time, and keeps only the values before GELU for the backward pass, which computes GELU
again: less memory is written and read, and less is kept. There are kernels for float32 on CPUs with
AVX-512, and no fallback: ask `is_available` and `HAS_KERNELS` first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import fused
from .compiled import is_compiled

MULTIPLE = 16
"""Divides both widths of an MLP, and the input width of a layer."""

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_SCHEMAS = {
    "cpu_mlp": "(Tensor x, Tensor fc1, Tensor bias1, Tensor fc2, Tensor? bias2)"
    " -> (Tensor, Tensor)",
    "cpu_mlp_backward": "(Tensor grad, Tensor x, Tensor hidden, Tensor fc1, Tensor fc2,"
    " bool needs_x, bool needs_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    "cpu_weight_gradient": "(Tensor grad, Tensor x) -> Tensor",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"internimage::{_name}", _schema, tags=_TAGS)
torch.library.define("internimage::cpu_has_linear", "(Tensor x) -> bool")


@torch.library.register_kernel("internimage::cpu_has_linear", None)
def _has_no_kernels(x: Tensor) -> bool:
    return False  # where no library has registered a kernel


HAS_KERNELS = bool(torch.ops.internimage.cpu_has_linear.default(torch.empty(0)))
"""Whether the library has kernels for this processor."""


def is_available(x: Tensor, hidden: int) -> bool:
    """Whether `mlp` can process values ``(..., C)`` with a hidden layer of a width.

    That is an eager or compiled pass on a CPU, in float32, with the compiled library.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and all(width > 0 and width % MULTIPLE == 0 for width in (x.shape[-1], hidden))
        and (is_compiled() or fused.is_eager())
        and HAS_KERNELS
    )


def mlp(x: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor | None) -> Tensor:
    """``gelu(x @ fc1.T + bias1) @ fc2.T + bias2``; it has no second derivative.

    Args:
        x: Values ``(..., C)`` for which `is_available`.
        fc1: First weight, ``(hidden, C)``.
        bias1: First bias, ``(hidden,)``.
        fc2: Second weight, ``(C, hidden)``.
        bias2: Second bias, ``(C,)``; ``None`` is 0.

    Returns:
        Values ``(..., C)``.
    """
    tensors = x.contiguous(), fc1.contiguous(), bias1, fc2.contiguous(), bias2
    out: Tensor = torch.ops.internimage.cpu_mlp.default(*tensors)[0]
    return out


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight of a linear layer, ``grad.T @ x``.

    Args:
        grad: Gradient of the results, ``(rows, out)``, float32 on a CPU; needs `HAS_KERNELS`.
        x: Values ``(rows, in)``, float32, with ``in`` a multiple of `MULTIPLE`.

    Returns:
        Tensor of shape ``(out, in)``.
    """
    sums: Tensor = torch.ops.internimage.cpu_weight_gradient.default(
        grad.contiguous(), x.contiguous()
    )
    return sums


@torch.library.register_fake("internimage::cpu_weight_gradient")
def _fake_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1])


@torch.library.register_fake("internimage::cpu_mlp")
def _fake(x: Tensor, fc1: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return torch.empty_like(x), x.new_empty(rows, fc1.shape[0])


@torch.library.register_fake("internimage::cpu_mlp_backward")
def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    needs_x: bool,
    needs_weights: bool,
) -> tuple[Tensor, ...]:
    width, channels = fc1.shape if needs_weights else (0, fc1.shape[1])
    shapes = (x.shape if needs_x else (0,)), (width, channels), (width,), (channels, width)
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, fc1, _, fc2, _ = inputs
    ctx.save_for_backward(x, output[1], fc1, fc2)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    needs_x, *needs_weights, needs_bias2 = ctx.needs_input_grad
    grads = torch.ops.internimage.cpu_mlp_backward.default(
        grad.contiguous(), *ctx.saved_tensors, needs_x, any(needs_weights)
    )
    bias2 = grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias2 else None
    needed = needs_x, *needs_weights
    return *(g if wanted else None for g, wanted in zip(grads, needed, strict=True)), bias2


torch.library.register_autograd("internimage::cpu_mlp", _gradients, setup_context=_setup_context)


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "An MLP on a CPU has no second derivative in float32; differentiate without"
        " create_graph=True, or in float64."
    )


torch.library.register_autograd("internimage::cpu_mlp_backward", _double_backward)
