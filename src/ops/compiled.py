"""Operators with gradients that compiled code on a CPU calls as a whole.

The compiler turns what it fuses into loops, and its sums over the rows of a feature map, which are
the gradients of biases and norms, read one column after the other. An operator that it cannot look
into keeps the kernels of eager passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._autograd import gradients, setup_context

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)


def is_compiled() -> bool:
    """Whether this code is compiled by ``torch.compile``, and not exported."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def define(
    name: str, arguments: str, forward: Callable[..., Tensor], backward: Callable[..., Any]
) -> None:
    """Define ``internimage::NAME`` and ``internimage::NAME_backward`` for tensors on a CPU.

    Args:
        name: Name of the operator.
        arguments: Arguments in a schema, two or three tensors first. The result has the dtype of
            the first one and its shape, but for the last axis, which has the length of the second.
        forward: Computes the result of all arguments.
        backward: Computes the gradients of the tensors from the gradient of the result, all
            arguments, and which gradients are needed; the others may be ``None``.
    """
    count = arguments.count("Tensor")
    results = ", ".join(["Tensor"] * count)
    schemas = {
        name: f"({arguments}) -> Tensor",
        f"{name}_backward": f"(Tensor grad, {arguments}, bool[{count}] needed) -> ({results})",
    }
    for key, schema in schemas.items():
        torch.library.define(f"internimage::{key}", schema, tags=_TAGS)

    def backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        grads = backward(grad.contiguous(), x.contiguous(), *args)
        wanted = zip(grads, args[-1], strict=True)
        return tuple(grad.contiguous() if needed else x.new_empty(0) for grad, needed in wanted)

    def forward_kernel(x: Tensor, *args: Any) -> Tensor:
        return forward(x.contiguous(), *args)

    kernels: dict[str, Callable[..., Any]]
    fakes: dict[str, Callable[..., Any]]
    kernels = {name: forward_kernel, f"{name}_backward": backward_kernel}
    fakes = {name: _fake, f"{name}_backward": _fake_gradients}
    for key in schemas:
        torch.library.impl(f"internimage::{key}", "CPU", kernels[key])
        torch.library.register_fake(f"internimage::{key}", fakes[key])
    operator = getattr(torch.ops.internimage, f"{name}_backward").default
    torch.library.register_autograd(
        f"internimage::{name}", partial(gradients, operator), setup_context=setup_context
    )


def _fake(x: Tensor, second: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], second.shape[0])


def _fake_gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    wanted = zip(args, args[-1], strict=False)
    return tuple(
        tensor.new_empty(tensor.shape if needed else 0)
        if isinstance(tensor, Tensor)
        else grad.new_empty(0)
        for tensor, needed in wanted
    )
