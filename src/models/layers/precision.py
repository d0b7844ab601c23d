"""Precision of values: float32 results under mixed precision, and what autocast casts to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.stateless import _reparametrize_module

autocast_dtype_of_meta: torch.dtype | None = None
"""Autocast dtype of the meta device, which has none; set to count memory and traffic."""


def full_precision(x: Tensor) -> Tensor:
    """Cast 16-bit values to float32, which losses, box arithmetic and final scores need."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Dtype that autocast casts to on a type of device; ``None`` if it is off."""
    if device_type == "meta":  # asking about a device without autocast raises
        return autocast_dtype_of_meta
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Context without autocast on a type of device."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@contextmanager
def parameters_cast(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Replace the float32 parameters of a module by 16-bit copies, which autocast need not cast.

    All parameters are cast by one kernel, and so are their gradients, where autocast starts one
    kernel for each. Gradients arrive at the float32 parameters.
    """
    wide = {n: p for n, p in module.named_parameters() if p.dtype == torch.float32}
    copies = dict(zip(wide, _Cast.apply(dtype, *wide.values()), strict=True)) if wide else {}
    with _reparametrize_module(module, copies):
        yield


class _Cast(Function):
    """Cast several tensors at once."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *wide: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        copies = _cast_together(wide, dtype)
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(
            *(copy for copy, is_needed in zip(copies, needed, strict=True) if not is_needed)
        )
        return copies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        wide = iter(_cast_together(given, torch.float32))
        return None, *(None if grad is None else next(wide) for grad in grads)


def _cast_together(tensors: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    results = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    if results:
        torch._foreach_copy_(results, list(tensors))
    return results
