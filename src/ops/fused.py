"""LayerNorm and GELU with what surrounds them, for eager passes.

An eager step spends most of its time on reading and writing feature maps. These functions leave out
feature maps that PyTorch's own layers write only to be read once by the next layer: between a
LayerNorm and a GELU, and, in the backward pass, between a LayerNorm and the sum of gradients in
front of it, and between a GELU and the sum for the gradient of a bias. The compiler of
``torch.compile`` fuses such passes itself, so that compiled code on a GPU uses PyTorch's layers; on
a CPU its loops are slower than these kernels, and compiled code calls them too.

They need Triton and a GPU, or the compiled library on a CPU, see :func:`is_available`. They have no
second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._load import LIBRARIES
from .compiled import define, is_compiled

is_available_on_meta = False
"""Whether the meta device stands for a GPU with Triton; set to count memory and traffic."""

MAX_PROGRAMS = 1024
"""Most partial sums of a gradient."""

ROWS_OF_PROGRAM = 32
"""Fewest rows of which there is a partial sum, so that these are a small part of all bytes."""

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CPU_DTYPES = (torch.float32, torch.bfloat16)


def is_available(x: Tensor) -> bool:
    """Whether the functions of this module can process ``x``.

    That is an eager pass on a GPU with Triton, or an eager or compiled pass on a CPU, in float32 or
    bfloat16, with the compiled library.
    """
    device_type = x.device.type
    if device_type == "cpu":
        is_possible = _HAS_CPU_KERNELS and x.dtype in _CPU_DTYPES
        return is_possible and (is_compiled() or is_eager())
    if device_type == "cuda":
        return LIBRARIES.no_triton is None and x.dtype in _DTYPES and is_eager()
    return device_type == "meta" and is_available_on_meta


def is_eager() -> bool:
    """Whether this code is neither compiled, traced nor transformed (``torch.func``)."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not (is_traced or torch._C._are_functorch_transforms_active())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, with arguments as in :func:`layer_norm_gelu`."""
    if is_compiled():
        compiled: Tensor = _OPERATORS.compiled_layer_norm.default(x, weight, bias, eps, False)
        return compiled
    return _eager_norm(x, weight, bias, eps, gelu=False)[0]


def layer_norm_gelu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Exact GELU of the LayerNorm over the last axis, ``(..., C) -> (..., C)``, in one pass.

    Args:
        x: Feature map of shape ``(..., C)``; the result has its dtype. Everything inside is float32
            (float64 for float64).
        weight: Scale ``(C,)``, of any dtype.
        bias: Shift ``(C,)``, of the dtype of ``weight``.
        eps: Added to the variance.
    """
    if is_compiled():
        compiled: Tensor = _OPERATORS.compiled_layer_norm.default(x, weight, bias, eps, True)
        return compiled
    return _eager_norm(x, weight, bias, eps, gelu=True)[0]


def layer_norm_fork(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm over the last axis, and ``x`` itself for the residual connection around it.

    The backward pass of the norm adds the gradient of the residual connection, which autograd would
    do in a pass of its own. Arguments as in :func:`layer_norm_gelu`.
    """
    if is_compiled():  # the compiler adds the two gradients in one of its passes
        return layer_norm(x, weight, bias, eps), x
    return _eager_norm(x, weight, bias, eps, gelu=False)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Exact GELU of ``x + bias`` in one pass; the backward pass also sums the gradient of ``bias``.

    Args:
        x: Feature map of shape ``(..., C)``; the result has its dtype.
        bias: Bias ``(C,)``, of any dtype.
    """
    if is_compiled():
        compiled: Tensor = _OPERATORS.compiled_bias_gelu.default(x, bias)
        return compiled
    out: Tensor = _BiasGelu.apply(x.contiguous(), bias)
    return out


_OPERATORS = torch.ops.internimage
_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
# The second results of the backward operators are partial sums over rows, which the caller adds up:
# (programs, 2, C) of weight and bias, and (programs, C) of the bias.
_SCHEMAS = {
    "layer_norm": "(Tensor x, Tensor weight, Tensor bias, float eps, bool gelu) -> Tensor",
    "layer_norm_backward": "(Tensor grad, Tensor? residual, Tensor x, Tensor weight, Tensor bias,"
    " float eps, bool gelu) -> (Tensor, Tensor)",
    "bias_gelu": "(Tensor x, Tensor bias) -> Tensor",
    "bias_gelu_backward": "(Tensor grad, Tensor x, Tensor bias) -> (Tensor, Tensor)",
}


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _empty_norm_gradients(grad: Tensor, residual: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _empty_sums(x, 2, x.shape[-1])


def _empty_gelu_gradients(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _empty_sums(x, x.shape[-1])


def _empty_sums(x: Tensor, *shape: int) -> Tensor:
    rows = x.numel() // x.shape[-1]
    programs = min(MAX_PROGRAMS, -(-rows // ROWS_OF_PROGRAM))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(programs, *shape, dtype=dtype)


EMPTY: dict[str, Callable[..., Any]] = {
    "layer_norm": _empty,
    "layer_norm_backward": _empty_norm_gradients,
    "bias_gelu": _empty,
    "bias_gelu_backward": _empty_gelu_gradients,
}
"""Makes the results of each operator, which the kernels fill."""


def run(name: str, *args: Any) -> Any:
    """Run the Triton kernel of an operator."""
    from .triton import fused

    results = EMPTY[name](*args)
    fused.launch(name, args, results if isinstance(results, tuple) else (results,))
    return results


def _register(name: str) -> None:
    def on_gpu(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):
            return run(name, *args)

    torch.library.define(f"internimage::{name}", _SCHEMAS[name], tags=_TAGS)
    torch.library.register_fake(f"internimage::{name}", EMPTY[name])
    torch.library.impl(f"internimage::{name}", "CUDA", on_gpu)


for _name in _SCHEMAS:
    _register(_name)

# A library built from earlier sources has none.
_HAS_CPU_KERNELS = all(
    torch._C._dispatch_has_kernel_for_dispatch_key(f"internimage::{name}", "CPU")
    for name in _SCHEMAS
)


def _norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, sums = _OPERATORS.layer_norm_backward.default(grad, residual, x, weight, bias, *options)
    grad_weight, grad_bias = sums.sum(0).to(weight.dtype)
    return grad_x, grad_weight, grad_bias


def _gelu_gradients(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, sums = _OPERATORS.bias_gelu_backward.default(grad, x, bias)
    return grad_x, sums.sum(0).to(bias.dtype)


def _eager_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, gelu: bool
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    if not torch.is_grad_enabled():  # `Function` takes as long as the norm of a small feature map
        return torch.ops.internimage.layer_norm.default(x, weight, bias, eps, gelu), x
    normed, residual = _LayerNorm.apply(x, weight, bias, eps, gelu)
    return normed, residual


class _LayerNorm(Function):
    """LayerNorm, and its input once more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias)
        ctx.options = eps, gelu
        ctx.set_materialize_grads(False)
        return torch.ops.internimage.layer_norm.default(x, weight, bias, eps, gelu), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, residual: Tensor | None) -> Any:
        if grad is None:
            return residual, None, None, None, None
        x, weight, bias = ctx.saved_tensors
        residual = None if residual is None else residual.contiguous()
        tensors = grad.contiguous(), residual, x, weight, bias
        return *_norm_gradients(*tensors, *ctx.options), None, None


class _BiasGelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        out: Tensor = torch.ops.internimage.bias_gelu.default(x, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        return _gelu_gradients(grad.contiguous(), x, bias)


def _compiled_norm_gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    grad_x, *rows = _norm_gradients(grad, None, *args[:-1])
    return grad_x, *(row.clone() for row in rows)  # results of an operator share no memory


define(
    "compiled_layer_norm",
    "Tensor x, Tensor weight, Tensor bias, float eps, bool gelu",
    _OPERATORS.layer_norm.default,
    _compiled_norm_gradients,
)
define(
    "compiled_bias_gelu",
    "Tensor x, Tensor bias",
    _OPERATORS.bias_gelu.default,
    lambda grad, x, bias, _: _gelu_gradients(grad, x, bias),
)
