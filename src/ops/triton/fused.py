"""Launch the Triton kernels of :mod:`src.ops.fused`, which makes the tensors."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import fused_kernels

TILE = 1024  # values of a tile: 16 bytes for each thread of four warps in 16 bits
MAX_COLUMNS = 128  # width of a tile of `bias_gelu`


def launch(name: str, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    """Fill the results of an operator of :mod:`src.ops.fused`.

    Args:
        name: Its name.
        args: Its arguments: contiguous tensors, then eps and gelu of a norm.
        results: Empty results.
    """
    kernel, is_norm = KERNELS[name], name.startswith("layer_norm")
    x = results[0]
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    if rows == 0:
        return
    tensors, options = (args[:-2], args[-2:]) if is_norm else (args, ())
    constants = norm_constants(x, *options) if is_norm else gelu_constants(x)
    # Programs of the backward kernels loop over tiles of rows.
    count = len(results[1]) if len(results) > 1 else triton.cdiv(rows, constants["ROWS"])
    grid = (count, triton.cdiv(channels, constants["BLOCK"]))
    kernel[grid](*tensors, *results, rows, **constants)


KERNELS = {
    "layer_norm": fused_kernels.layer_norm_forward,
    "layer_norm_backward": fused_kernels.layer_norm_backward,
    "bias_gelu": fused_kernels.bias_gelu_forward,
    "bias_gelu_backward": fused_kernels.bias_gelu_backward,
}


def norm_constants(x: Tensor, eps: float, gelu: bool) -> dict[str, Any]:
    """Compile-time constants of the kernels of LayerNorm, whose tiles contain whole rows."""
    block = triton.next_power_of_2(x.shape[-1])
    constants = {"CHANNELS": x.shape[-1], "EPS": eps, "GELU": gelu, "BLOCK": block}
    warps = min(16, max(4, block // 256))
    return {**constants, "ROWS": max(1, TILE // block), "ACC": _acc(x), "num_warps": warps}


def gelu_constants(x: Tensor) -> dict[str, Any]:
    """Compile-time constants of the kernels of ``bias_gelu``."""
    block = min(MAX_COLUMNS, triton.next_power_of_2(x.shape[-1]))
    return {"CHANNELS": x.shape[-1], "BLOCK": block, "ROWS": TILE // block, "ACC": _acc(x)}


def _acc(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
