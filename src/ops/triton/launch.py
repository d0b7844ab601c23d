"""Launch the Triton kernels: layouts, block sizes, accumulation buffers.

The tensors have been checked by :func:`src.ops.dcnv3`. It works on NVIDIA and AMD GPUs, and on CPU
tensors if ``kernels`` was imported with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from .._arguments import Window, output_size
from ..fixed_point import fixed_point_unit, from_fixed_point
from . import kernels

MAX_BLOCK = 64  # channels per program
MAX_ROWS = 64
THREADS = 128  # four warps, Triton's default


def forward(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Output of shape ``(N, H_out, W_out, C)`` in the dtype of ``input``."""
    n, h, w, c = input.shape
    h_out, w_out = output_size(h, w, window)
    output = input.new_empty(n, h_out, w_out, c)
    if n == 0:
        return output
    constants = _constants(input, window)
    rows = n * h_out * w_out * window.groups
    blocks = triton.cdiv(c // window.groups, constants["BLOCK"])
    offset, mask = _as_rows(offset), _as_rows(mask)
    _traceable(kernels.forward)[(triton.cdiv(rows, constants["ROWS"]), blocks)](
        input.contiguous(),
        offset,
        mask,
        output,
        rows,
        h,
        w,
        h_out,
        w_out,
        offset.stride(0),
        mask.stride(0),
        WIDE=_is_wide(rows),
        **constants,
    )
    return output


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Window,
    output_mask: tuple[bool, bool, bool],
    *,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``offset`` and ``mask`` (empty if not needed).

    With ``deterministic`` the input gradient is accumulated in fixed point
    (:mod:`src.ops.fixed_point`), so it is bitwise reproducible. If ``grad`` is not finite, the
    whole input gradient is then NaN.
    """
    n, h, w, _ = input.shape
    accumulate = _accumulation_type(input)
    sum_type = torch.int64 if deterministic else accumulate
    grad_input = input.new_zeros(input.shape if output_mask[0] else 0, dtype=sum_type)
    grad_offset = offset.new_empty(offset.shape if output_mask[1] else 0)
    grad_mask = mask.new_empty(mask.shape if output_mask[2] else 0)
    if n == 0:
        return grad_input.to(input.dtype), grad_offset, grad_mask
    needs_scratch = window.mask_softmax and grad_mask.dtype != accumulate
    scratch = torch.empty_like(grad_mask, dtype=accumulate) if needs_scratch else grad_mask
    unit = fixed_point_unit(grad, mask, window) if deterministic else None
    constants = _constants(input, window)
    h_out, w_out = offset.shape[1:3]
    rows = n * h_out * w_out * window.groups
    offset, mask = _as_rows(offset), _as_rows(mask)
    _traceable(kernels.backward)[(triton.cdiv(rows, constants["ROWS"]),)](
        grad.contiguous(),
        input.contiguous(),
        offset,
        mask,
        unit,
        grad_input,
        grad_offset,
        grad_mask,
        scratch,
        rows,
        h,
        w,
        h_out,
        w_out,
        offset.stride(0),
        mask.stride(0),
        WIDE=_is_wide(rows),
        WANT_INPUT=output_mask[0],
        WANT_OFFSET=output_mask[1],
        WANT_MASK=output_mask[2],
        DETERMINISTIC=deterministic,
        **constants,
    )
    if unit is not None:
        grad_input = from_fixed_point(grad_input, unit, input.dtype)
    return grad_input.to(input.dtype), grad_offset, grad_mask


def _constants(input: Tensor, window: Window) -> dict[str, Any]:
    """Compile-time constants of the kernels: the window, and blocks of 16 bytes per thread."""
    channels = input.shape[-1] // window.groups
    block = min(MAX_BLOCK, triton.next_power_of_2(channels))
    values = THREADS * 16 // input.element_size()
    return {
        "GROUPS": window.groups,
        "CHANNELS": channels,
        "KERNEL": window.kernel_size,
        "STRIDE": window.stride,
        "PAD": window.padding,
        "DILATION": window.dilation,
        "SCALE": window.offset_scale,
        "REMOVE_CENTER": window.remove_center,
        "SOFTMAX": window.mask_softmax,
        "POINTS": window.points,
        "ROWS": min(MAX_ROWS, values // block),
        "BLOCK": block,
        "ACC": tl.float64 if input.dtype == torch.float64 else tl.float32,
    }


def _accumulation_type(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _as_rows(tensor: Tensor) -> Tensor:
    """``(N, H, W, K)`` as ``(N * H * W, K)`` with a dense last axis; a view if that is possible."""
    rows = tensor.flatten(0, 2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _is_wide(rows: int) -> bool:
    return bool(rows + MAX_ROWS >= 2**31)


def _traceable(kernel: Any) -> Any:
    return wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
