"""A few images at a time, so that intermediate values stay in the cache of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from src.models.layers.norm import has_hooks
from src.ops.fused import is_eager

PART = 2**22
"""Bytes of the largest intermediate feature map of the images that run at a time."""


def is_unobserved(x: Tensor) -> bool:
    """Whether only the result of a forward pass matters, and not which modules and operators run.

    That is an eager pass of a plain tensor on a CPU, without the hooks and modes of others, which
    count operations, for example.
    """
    return (
        is_eager()
        and type(x) is Tensor
        and x.is_cpu
        and x.numel() > 0
        and not nn_module._has_any_global_hook()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def can_split(x: Tensor, *modules: nn.Module) -> bool:
    """Whether modules may get the images of a forward pass a few at a time.

    Not with gradients or in training; and hooks would see a part of the images.
    """
    inner = [m for module in modules for m in module.modules()]
    is_evaluated = not torch.is_grad_enabled() and not any(m.training for m in inner)
    return is_evaluated and is_unobserved(x) and not has_hooks(*inner)


def in_parts(
    x: Tensor, image_bytes: int, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Results of ``run`` on a few images at a time.

    Args:
        x: Images or feature maps, ``(N, ...)``.
        image_bytes: Bytes of the largest intermediate feature map of one image.
        run: Computes tensors whose first axis are the images.
    """
    parts = [run(part) for part in x.split(max(1, PART // max(1, image_bytes)))]
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
