"""The Triton kernels as a differentiable function, independent of the selected implementation."""

import torch

from src.ops._arguments import make_window
from src.ops.packed import pack
from src.ops.triton import launch

DEFAULTS = {"offset_scale": 1.0, "remove_center": False, "mask_softmax": False}


def dcnv3_triton(input, offset, mask, *, deterministic=False, **kwargs):
    window = make_window(**(DEFAULTS | kwargs))
    return _Function.apply(input, offset, mask, window, deterministic)


def packed_triton(input, offset, mask, *, deterministic=False, **kwargs):
    """The same on packed rows, as DCNv4 has them."""
    window = make_window(**(DEFAULTS | kwargs))
    return _Packed.apply(input, pack(offset, mask, window, torch.nan), window, deterministic)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, rows, window, deterministic):
        ctx.save_for_backward(input, rows)
        ctx.window, ctx.deterministic = window, deterministic
        return launch.forward_packed(input, rows, window)

    @staticmethod
    def backward(ctx, grad):
        grads = launch.backward_packed(
            grad, *ctx.saved_tensors, ctx.window, (True, True), deterministic=ctx.deterministic
        )
        return *grads, None, None


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, window, deterministic):
        ctx.save_for_backward(input, offset, mask)
        ctx.window, ctx.deterministic = window, deterministic
        return launch.forward(input, offset, mask, window)

    @staticmethod
    def backward(ctx, grad):
        grads = launch.backward(
            grad,
            *ctx.saved_tensors,
            ctx.window,
            (True, True, True),
            deterministic=ctx.deterministic,
        )
        return *grads, None, None
