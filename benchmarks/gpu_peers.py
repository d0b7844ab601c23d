"""Other implementations of DCNv3's sampling, as far as they can be imported, behind one interface.

All for a 3x3 window of stride 1. What a module does around the operator is timed where it cannot be
had otherwise: the softmax of the official operator is; the layout that DCNv4 and deformops want is
not (one Linear could write it), nor is the softmax that DCNv4 lacks, so these two are their
operators alone. Ours always has the softmax in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from src.ops import dcnv3, dcnv3_grid_sample

WINDOW = (3, 3, 1, 1, 1, 1, 1, 1)  # kernel, stride, padding, dilation


@dataclass
class Path:
    """One implementation: `call(*prepare(input, offset, logits, groups), groups)`."""

    call: Callable[..., Tensor]
    prepare: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]]
    module: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)


def as_they_are(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> tuple[Tensor, ...]:
    return x, offset, logits


def with_mask(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> tuple[Tensor, ...]:
    return x, pack(offset, softmax(logits, groups), groups)


def with_logits(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> tuple[Tensor, ...]:
    return x, pack(offset, logits, groups)


def softmax(logits: Tensor, groups: int) -> Tensor:
    return logits.unflatten(-1, (groups, 9)).softmax(-1).flatten(-2)


def pack(offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """Offsets and masks of a group side by side, rows padded to a multiple of 8."""
    parts = offset.unflatten(-1, (groups, 18)), mask.unflatten(-1, (groups, 9))
    packed = torch.cat(parts, dim=-1).flatten(-2)
    return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 8))


def im2col_step(x: Tensor) -> int:
    """The largest chunk of images up to 256 that divides the batch."""
    return max(step for step in range(1, 257) if x.shape[0] % step == 0)


def ours(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return dcnv3(x, offset, logits, groups=groups, mask_softmax=True)


def plain(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return dcnv3_grid_sample(x, offset, logits, groups=groups, mask_softmax=True)


class _Official(Function):
    """The official extension `DCNv3`, which brings kernels and no autograd."""

    @staticmethod
    def forward(ctx, x, offset, mask, groups):
        ctx.save_for_backward(x, offset, mask)
        ctx.sizes = *WINDOW, groups, x.shape[-1] // groups, 1.0
        forward = importlib.import_module("DCNv3").dcnv3_forward
        return forward(x, offset, mask, *ctx.sizes, im2col_step(x), False)

    @staticmethod
    def backward(ctx, grad):
        backward = importlib.import_module("DCNv3").dcnv3_backward
        step = im2col_step(grad)
        grads = backward(*ctx.saved_tensors, *ctx.sizes, grad.contiguous(), step, False)
        return *grads, None


def official(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return _Official.apply(x, offset, softmax(logits, groups), groups)


def dcnv4(x: Tensor, packed: Tensor, groups: int) -> Tensor:
    function = importlib.import_module("DCNv4.functions").DCNv4Function
    return function.apply(
        x, packed, *WINDOW, groups, x.shape[-1] // groups, 1.0, im2col_step(x), False
    )


def deformops(x: Tensor, packed: Tensor, groups: int) -> Tensor:
    deform2d = importlib.import_module("deformops").deform2d
    sizes = groups, x.shape[-1] // groups, 1.0
    return deform2d(x, packed, *WINDOW, *sizes, im2col_step(x), False, True)


HALF = (torch.float32, torch.float16)  # what the official kernels know
PATHS = {
    "ours": Path(ours, as_they_are),
    "plain": Path(plain, as_they_are),
    "official": Path(official, as_they_are, "DCNv3", HALF),
    "DCNv4": Path(dcnv4, with_mask, "DCNv4", HALF),
    "deformops": Path(deformops, with_logits, "deformops"),
}


def importable() -> tuple[dict[str, Path], dict[str, str]]:
    """Paths that can run, and for each other one the reason."""
    paths, missing = {}, {}
    for name, path in PATHS.items():
        try:
            if path.module:
                importlib.import_module(path.module)
            paths[name] = path
        except ImportError as error:
            missing[name] = str(error)
    return paths, missing
