"""Other implementations of DCNv3's sampling, as far as they can be imported, behind one interface.

All for a 3x3 window of stride 1. They are looked for as the packages that their authors publish:
`DCNv3` (`dcnv3_forward`, `dcnv3_backward` of the official extension), `DCNv4`
(`DCNv4.functions`) and `deformops` (`deformops.registry.attn`). A folder given with
`--peers` is searched first, so that builds that are not installed can be used.

What a module does around the operator is timed where it cannot be had otherwise: the softmax of the
official operator and of deformops is; the layout that DCNv4 and deformops want is not (one Linear
could write it), nor is the softmax that DCNv4 lacks. Ours always has the softmax in it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor
from torch.autograd import Function

from src.ops import dcnv3, dcnv3_grid_sample

WINDOW = (3, 3, 1, 1, 1, 1, 1, 1)  # kernel, stride, padding, dilation
ALL = (torch.float32, torch.float16, torch.bfloat16)
HALF = (torch.float32, torch.float16)  # what the official kernels know


@dataclass
class Path:
    """One implementation: `call(*prepare(input, offset, logits, groups), groups)`."""

    call: Callable[..., Tensor]
    prepare: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]]
    module: str | None = None
    dtypes: tuple[torch.dtype, ...] = ALL
    needs_gpu: bool = True


def as_they_are(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> tuple[Tensor, ...]:
    return x, offset, logits


def one_after_the_other(
    x: Tensor, offset: Tensor, logits: Tensor, groups: int
) -> tuple[Tensor, ...]:
    """For each group 18 offsets, then 9 masks; rows padded to a multiple of 8."""
    mask = softmax(logits, groups)
    parts = offset.unflatten(-1, (groups, 18)), mask.unflatten(-1, (groups, 9))
    packed = torch.cat(parts, dim=-1).flatten(-2)
    return x, torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 8))


def in_triples(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> tuple[Tensor, ...]:
    """For each point two offsets and a logit."""
    parts = offset.unflatten(-1, (groups * 9, 2)), logits.unflatten(-1, (groups * 9, 1))
    return x, torch.cat(parts, dim=-1).flatten(-2)


def softmax(logits: Tensor, groups: int) -> Tensor:
    return logits.unflatten(-1, (groups, 9)).softmax(-1).flatten(-2)


def im2col_step(x: Tensor) -> int:
    """The largest chunk of images up to 256 that divides the batch."""
    return max(step for step in range(1, 257) if x.shape[0] % step == 0)


def ours(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return dcnv3(x, offset, logits, groups=groups, mask_softmax=True)


def triton(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    """Our Triton kernels, also where the CUDA library is built."""
    importlib.import_module("src.ops.triton.operators")
    operator = torch.ops.internimage.dcnv3_triton
    pairs = [list(WINDOW[i : i + 2]) for i in (0, 2, 4, 6)]
    return operator(x, offset, logits, groups, *pairs, 1.0, False, True)


def plain(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return dcnv3_grid_sample(x, offset, logits, groups=groups, mask_softmax=True)


class _Official(Function):
    """The official extension `DCNv3`, which brings kernels and no autograd."""

    @staticmethod
    def forward(ctx, x, offset, mask, groups):
        ctx.save_for_backward(x, offset, mask)
        ctx.sizes = *WINDOW, groups, x.shape[-1] // groups, 1.0
        forward = importlib.import_module("DCNv3").dcnv3_forward
        return forward(x, offset, mask, *ctx.sizes, im2col_step(x), 0)

    @staticmethod
    def backward(ctx, grad):
        backward = importlib.import_module("DCNv3").dcnv3_backward
        step = im2col_step(grad)
        grads = backward(*ctx.saved_tensors, *ctx.sizes, grad.contiguous(), step, 0)
        return *grads, None


def official(x: Tensor, offset: Tensor, logits: Tensor, groups: int) -> Tensor:
    return _Official.apply(x, offset, softmax(logits, groups), groups)


def dcnv4(x: Tensor, packed: Tensor, groups: int) -> Tensor:
    module = importlib.import_module("DCNv4.functions.dcnv4_func")
    if not hasattr(module.factors, "cache_info"):
        # It tries all numbers up to N*H*W at each call, which would take longer than the kernels.
        module.factors = functools.cache(module.factors)
    return module.DCNv4Function.apply(
        x, packed, *WINDOW, groups, x.shape[-1] // groups, 1.0, im2col_step(x), 0
    )


def deformops(x: Tensor, triples: Tensor, groups: int) -> Tensor:
    attn = importlib.import_module("deformops.registry").attn
    return attn(x, triples, groups=groups, group_dims=x.shape[-1] // groups, softmax=True)


PATHS = {
    "ours": Path(ours, as_they_are, needs_gpu=False),
    "triton": Path(triton, as_they_are, "triton"),
    "plain": Path(plain, as_they_are, needs_gpu=False),
    "official": Path(official, as_they_are, "DCNv3", HALF),
    "DCNv4": Path(dcnv4, one_after_the_other, "DCNv4.functions.dcnv4_func", HALF),
    "deformops": Path(deformops, in_triples, "deformops.registry", needs_gpu=False),
}


def search_first(folder: FilePath | None) -> None:
    """Look into `folder` before the installed packages."""
    if folder is not None:
        sys.path.insert(0, str(folder.resolve()))


def importable(device: str = "cuda") -> tuple[dict[str, Path], dict[str, str]]:
    """Paths that can run on a device, and for each other one the reason."""
    paths, missing = {}, {}
    for name, path in PATHS.items():
        if path.needs_gpu and device == "cpu":
            missing[name] = "runs on a GPU only"
            continue
        try:
            if path.module:
                importlib.import_module(path.module)
            paths[name] = path
        # Whatever a package does while it is imported must not end the benchmark.
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return paths, missing
