"""LayerNorm in the autocast dtype, and GroupNorm of channels-last feature maps."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from src.models.layers.precision import autocast_dtype, without_autocast
from src.ops import fused


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose result under autocast has the autocast dtype instead of float32.

    Mean, variance and normalisation are float32 inside the kernel, as everywhere in PyTorch; only
    what it reads and writes has 16 bits. PyTorch's own layer writes float32 under autocast, which
    every following layer casts again. Without autocast both layers are the same.
    """

    float32_output = False
    """Under autocast, return float32 like PyTorch's own layer; see `set_float32_norms`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        device_type = x.device.type
        autocast = None if x.dtype == torch.float64 else autocast_dtype(device_type)
        dtype = x.dtype if autocast is None else autocast
        if autocast is not None and self.float32_output:
            dtype = torch.float32
        x = x.to(dtype)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if device_type == "cpu" and fused.is_available(x):
            return fused.layer_norm(x, weight, bias, self.eps)
        if autocast is None:
            return super().forward(x)
        if device_type != "cpu" or weight.dtype != torch.float32:
            # Only the CPU's kernel takes float32 parameters beside 16-bit values.
            weight, bias = weight.to(dtype), bias.to(dtype)
        is_trained = torch.is_grad_enabled() and fused.is_eager()  # `_CpuNorm` has no other rules
        if device_type == "cpu" and dtype != torch.float32 and is_trained:
            out: Tensor = _CpuNorm.apply(x, weight, bias, self.eps)
            return out
        with without_autocast(device_type):
            return torch.native_layer_norm(x, self.normalized_shape, weight, bias, self.eps)[0]


class GroupNorm(nn.GroupNorm):
    """GroupNorm that is as precise for channels-last feature maps as for contiguous ones.

    PyTorch's kernel for channels-last float32 values on the CPU subtracts the squared mean from the
    mean of squares. If the means of a feature map are ten times its standard deviations, results
    differ from float64 by 6e-4, those for contiguous values by 7e-7. On a GPU, PyTorch itself makes
    the values contiguous.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``, contiguous."""
        return super().forward(x.contiguous())


def norm_gelu(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(norm(x))``; an eager LayerNorm and GELU are one kernel of `src.ops.fused`.

    Modules with hooks are called.
    """
    if is_exact_gelu(act) and _is_fused(norm, x) and not has_hooks(act):
        return fused.layer_norm_gelu(x, norm.weight, norm.bias, norm.eps)
    out: Tensor = act(norm(x))
    return out


def norm_fork(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``norm(x)`` and ``x``, for a residual branch that starts with a norm.

    The backward pass of an eager LayerNorm of `src.ops.fused` adds the gradients of both results. A
    module with hooks is called.
    """
    if _is_fused(norm, x):
        return fused.layer_norm_fork(x, norm.weight, norm.bias, norm.eps)
    return norm(x), x


def is_exact_gelu(act: nn.Module) -> bool:
    """Whether an activation is the one that kernels compute."""
    return type(act) is nn.GELU and act.approximate == "none"


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module with hooks that run when it is called."""


def has_hooks(*modules: nn.Module) -> bool:
    """Whether one of some modules must be called because it has hooks."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    )


def _is_fused(norm: nn.Module, x: Tensor) -> TypeGuard[LayerNorm]:
    """Whether a norm reads and writes one dtype and there is a kernel for it."""
    if not (isinstance(norm, LayerNorm) and fused.is_available(x)) or has_hooks(norm):
        return False
    dtype = autocast_dtype(x.device.type)
    return (
        dtype is None or x.dtype == torch.float64 or (dtype == x.dtype and not norm.float32_output)
    )


class _CpuNorm(Function):
    """PyTorch's kernel on a CPU without the compiled one, and a backward pass that sums in float32.

    PyTorch's backward kernel on the CPU adds up the gradients of weight and bias in the dtype of
    the input. A sum of 16-bit numbers stops growing after a few hundred rows.
    """

    CHUNK = 2**16
    """Values that are float32 at a time; few enough for the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        with without_autocast("cpu"):
            out, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        channels = weight.numel()
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = [t.reshape(-1, channels) for t in (grad_x, grad, x)]
        rows += [t.reshape(-1, 1).float() for t in (mean, scale)]
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in (weight, bias)]
        size = max(1, _CpuNorm.CHUNK // channels)
        for out, *chunk in zip(*(t.split(size) for t in rows), strict=True):
            g, values, *statistics = chunk
            some, *parts = torch.ops.aten.native_layer_norm_backward(
                g.float(),
                values.float(),
                weight.shape,
                *statistics,
                weight.float(),
                bias.float(),
                needed,
            )
            if needed[0]:
                out.copy_(some)
            for total, part, is_needed in zip(sums, parts, needed[1:], strict=True):
                if is_needed:
                    total += part
        grads = (grad_x, *(t.to(weight.dtype) for t in sums))
        return *(g if n else None for g, n in zip(grads, needed, strict=True)), None


def set_float32_norms(network: nn.Module, enable: bool = True) -> None:
    """Switch float32 output under autocast on or off for every `LayerNorm` of a network."""
    for module in network.modules():
        if isinstance(module, LayerNorm):
            module.float32_output = enable
