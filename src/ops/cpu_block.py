"""A whole block of InternImage as one operator, for inference on a CPU.

The compiled library runs the layers of a block on a few rows of the feature map at a time, with
packed weights: what one layer writes is still in the cache when the next one reads it. There are
kernels for float32 on CPUs with AVX-512, and for bfloat16 on those that also have its dot products
(``avx512_bf16``) and no tiles (``amx_bf16``), with which oneDNN is faster. There is no fallback:
ask `is_available` first.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32
"""Columns of a weight that are stored together."""
MULTIPLE = 16
"""Divides all widths of a block."""

torch.library.define(
    "internimage::cpu_block",
    "(Tensor x, Tensor[] tensors, int groups, int[2] kernel, int hidden, float offset_scale,"
    " bool remove_center, bool has_gate, float eps) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)
torch.library.define("internimage::cpu_can_run_block", "(Tensor x) -> bool")


class PackedLinear(NamedTuple):
    """Weight and bias of a linear layer in the layout of `block`.

    Attributes:
        weight: ``(panels, in / step, 32, step)``, where a step is 4 bytes.
        bias: ``(32 * panels,)``, float32.
    """

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Scale and shift of a LayerNorm, ``(C,)``, float32; both are empty if there is none."""

    weight: Tensor = torch.empty(0)
    bias: Tensor = torch.empty(0)


class BlockWeights(NamedTuple):
    """Weights of a block in the layout of `block`.

    Attributes:
        norm1: Norm before DCNv3.
        last1: Norm after DCNv3.
        norm2: Norm before the MLP.
        last2: Norm after the MLP.
        depthwise: Kernels of the depthwise convolution, ``(k, k, C)``, float32, contiguous.
        depthwise_bias: Its bias, ``(C,)``, float32.
        depthwise_norm: Norm after it.
        input_proj: Projection of the values that are sampled.
        points: Offsets, masks and, if there are any, gates of all groups.
        output_proj: Projection of the sampled values.
        fc1: First layer of the MLP.
        fc2: Second layer of the MLP.
    """

    norm1: Norm
    last1: Norm
    norm2: Norm
    last2: Norm
    depthwise: Tensor
    depthwise_bias: Tensor
    depthwise_norm: Norm
    input_proj: PackedLinear
    points: PackedLinear
    output_proj: PackedLinear
    fc1: PackedLinear
    fc2: PackedLinear

    def tensors(self) -> list[Tensor]:
        """All tensors in the order of the fields."""
        flat: list[Tensor] = []
        for entry in self:
            flat += [entry] if isinstance(entry, Tensor) else entry
        return flat


class BlockOptions(NamedTuple):
    """Options of a block.

    Attributes:
        groups: Groups of DCNv3.
        kernel_size: Odd side of the sampling grid.
        dw_kernel_size: Odd side of the depthwise convolution.
        hidden: Width of the MLP.
        offset_scale: Factor on the grid and on the offsets.
        remove_center: Leave out the centre point of the grid.
        has_gate: Blend the sampled values of each group with those of the pixel.
        eps: Added to the variance in all norms.
    """

    groups: int
    kernel_size: int
    dw_kernel_size: int
    hidden: int
    offset_scale: float
    remove_center: bool
    has_gate: bool
    eps: float


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether `block` has kernels for values of a dtype on this CPU."""
    return bool(torch.ops.internimage.cpu_can_run_block.default(torch.empty(0, dtype=dtype)))


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedLinear:
    """Copy a linear layer to the layout of `block`.

    Args:
        weight: ``(out, in)``, with an even ``in``.
        bias: ``(out,)``, or ``None`` for zeros.
        dtype: float32 or bfloat16.
    """
    out, width = weight.shape
    missing = -out % PANEL
    step = 4 // dtype.itemsize
    padded = F.pad(weight.detach().to(dtype), (0, 0, 0, missing))
    panels = padded.view(-1, PANEL, width // step, step).transpose(1, 2)
    shift = weight.new_zeros(out) if bias is None else bias.detach()
    return PackedLinear(
        panels.clone(memory_format=torch.contiguous_format), F.pad(shift.float(), (0, missing))
    )


def block(x: Tensor, tensors: list[Tensor], options: BlockOptions) -> Tensor:
    """Run a block, without gradients.

    Args:
        x: Contiguous feature map ``(N, H, W, C)`` on the CPU; ``C`` and the width of the MLP are
            multiples of 16.
        tensors: What `BlockWeights.tensors` returns.
        options: Options of the block.

    Returns:
        Feature map of the shape and dtype of ``x``.
    """
    kernel = [options.kernel_size, options.dw_kernel_size]
    out: Tensor = torch.ops.internimage.cpu_block.default(
        x,
        tensors,
        options.groups,
        kernel,
        options.hidden,
        options.offset_scale,
        options.remove_center,
        options.has_gate,
        options.eps,
    )
    return out


@torch.library.register_kernel("internimage::cpu_can_run_block", None)
def _cannot_run(x: Tensor) -> bool:
    return False  # where no library has registered a kernel


@torch.library.register_fake("internimage::cpu_block")
def _fake(x: Tensor, *args: object) -> Tensor:
    return torch.empty_like(x)
