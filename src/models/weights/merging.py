"""Weights from checkpoints with low-rank factors (``model.lora``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_ORIGINAL = ".parametrizations.weight.original"
_UP, _DOWN = ".parametrizations.weight.0.up", ".parametrizations.weight.0.down"


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict in which every adapted weight is ``original + up @ down`` under its usual name.

    Args:
        state: Tensors by name. Factors that do not fit the original weight are left as they are.
    """
    merged = dict(state)
    for name, original in state.items():
        layer = name.removesuffix(_ORIGINAL)
        up, down = state.get(layer + _UP), state.get(layer + _DOWN)
        if layer == name or up is None or down is None or not up.ndim == down.ndim == 2:
            continue
        if (len(up), down.shape[1]) == tuple(original.shape) and up.shape[1] == len(down):
            for part in (name, layer + _UP, layer + _DOWN):
                del merged[part]
            merged[f"{layer}.weight"] = _sum(original, up, down)
    return merged


def _sum(original: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``original + up @ down`` in the dtype of the weight; the factors may have another one."""
    is_double = torch.float64 in (original.dtype, up.dtype, down.dtype)
    dtype = torch.float64 if is_double else torch.float32
    return (original.to(dtype) + up.to(dtype) @ down.to(dtype)).to(original.dtype)
