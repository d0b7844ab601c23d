"""The Triton kernels as ``torch.library.triton_op``; importing this module registers them.

``torch.compile`` traces into such operators, so a compiled graph contains the kernel launches and
the compiler plans their buffers. ``internimage::dcnv3_triton`` and
``internimage::dcnv3_triton_backward`` have the schemas and gradients of ``internimage::dcnv3``,
which eager code and exported programs use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from .._arguments import as_window
from .._autograd import BACKWARD_SCHEMA, FORWARD_SCHEMA, double_backward, gradients, setup_context
from .launch import backward, forward


@triton_op("internimage::dcnv3_triton", mutates_args=(), schema=FORWARD_SCHEMA)
def dcnv3_triton(input: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    """``internimage::dcnv3`` on a GPU."""
    return forward(input, offset, mask, as_window(window))


@triton_op("internimage::dcnv3_triton_backward", mutates_args=(), schema=BACKWARD_SCHEMA)
def dcnv3_triton_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``internimage::dcnv3_backward`` on a GPU, deterministic if PyTorch requires it."""
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    window, wanted = as_window(args[:-1]), tuple(args[-1])
    return backward(grad, input, offset, mask, window, wanted, deterministic=is_deterministic)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gradients(torch.ops.internimage.dcnv3_triton_backward.default, ctx, grad)


dcnv3_triton.register_autograd(_gradients, setup_context=setup_context)
dcnv3_triton_backward.register_autograd(double_backward)
