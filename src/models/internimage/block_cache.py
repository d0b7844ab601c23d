"""Blocks that run as one operator during evaluation on a CPU, while their weights do not change.

`prepare_for_inference` makes a copy; here, the network stays as it is, and packed weights are kept
beside the parameters. That is done under autocast to bfloat16, which would cast all weights in
every forward pass, and in compiled networks, whose users ask for speed. Eager float32 stays layer
by layer: it is the reference of the published numbers, and takes no memory for a second copy of the
weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from src.models.internimage.blocks import Block
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.fused_block import FusedBlock, can_fuse
from src.models.internimage.layers import MLP
from src.models.layers.linear import Linear
from src.models.layers.norm import LayerNorm, has_hooks
from src.models.layers.precision import autocast_dtype
from src.ops.fused import is_eager

_WITH_WEIGHT = (LayerNorm, Linear, nn.Conv2d)
_KINDS = frozenset((Block, DCNv3, MLP, *_WITH_WEIGHT, nn.GELU, nn.Dropout, DropPath))
"""Exact types of the modules of a block that the operator replaces.

Parametrizations, wrappers that shard or quantize, and layers of others have types of their own.
"""


class _Entry(NamedTuple):
    """Packed weights of a block.

    Attributes:
        state: What the block was when it was packed, see `_state`.
        kept: Its parameters, so that no ``id`` is used again as long as it is part of a state.
        views: The memory of each parameter, for the same reason.
        samples: A few values of each parameter, see `_samples`.
        fused: The block as one operator; ``None`` if there is no kernel for it.
    """

    state: tuple[object, ...]
    kept: Sequence[Tensor]
    views: list[NDArray[np.float32]]
    samples: list[float]
    fused: FusedBlock | None

    def holds(self, state: tuple[object, ...]) -> bool:
        """Whether the packed weights are those of the block in this state."""
        return self.state == state and self.samples == _samples(self.views)


class BlockCache:
    """Packed weights of the blocks of a stage, made at first use and again after a change.

    A change is another parameter, other memory, or another version of a tensor, which every
    operator counts that writes into it. Writing through ``parameter.data`` is not counted; it is
    seen if it changes the first or the middle value of a parameter, as scaling, averaging and
    loading do. Training mode, a forward pass with gradients and moving the network empty the cache,
    too. Copies and files of a network do not contain it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __reduce__(self) -> tuple[type[BlockCache], tuple[()]]:
        return BlockCache, ()

    def clear(self) -> None:
        """Free the packed weights."""
        self._entries.clear()

    def of(self, blocks: Iterable[nn.Module], x: Tensor) -> dict[int, FusedBlock]:
        """The blocks that run as one operator in this forward pass, by their number.

        Args:
            blocks: All blocks of the stage.
            x: Feature map ``(N, H, W, C)``.
        """
        if not is_eager():
            return {}
        if torch.is_grad_enabled():
            self.clear()
            return {}
        if type(x) is not Tensor or x.device.type != "cpu" or not x.numel() or _is_observed():
            return {}
        found = {}
        for index, block in enumerate(blocks):
            fused = self._fused(index, block, x.dtype)
            if fused is not None:
                found[index] = fused
        return found

    def _fused(self, index: int, block: nn.Module, given: torch.dtype) -> FusedBlock | None:
        if type(block) is not Block:
            return None
        dtype = _dtype(given, block.compilation is not None)
        modules = _modules(block)
        if dtype is None or not _is_plain(modules, dtype):
            self._entries.pop(index, None)
            return None
        parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        if any(p.is_inference() for p in parameters):  # they have no versions
            return None
        state = _state(block, dtype, parameters)
        entry = self._entries.get(index)
        if entry is None or not entry.holds(state):
            self._entries.pop(index, None)  # free before packing
            entry = _packed(state, block, modules, parameters, dtype)
            self._entries[index] = entry
        return entry.fused


def _dtype(given: torch.dtype, is_compiled: bool) -> torch.dtype | None:
    """Dtype of the operator for feature maps of a dtype; ``None`` for layer by layer."""
    dtype = autocast_dtype("cpu")
    if dtype is None:
        return given if is_compiled and given == torch.float32 else None
    return dtype if dtype == torch.bfloat16 and given in (torch.float32, torch.bfloat16) else None


def _is_observed() -> bool:
    """Whether somebody looks at every module or operator, as counters of operations do."""
    return nn_module._has_any_global_hook() or torch._C._len_torch_dispatch_stack() > 0


def _modules(block: Block) -> list[nn.Module]:
    """All modules of a block; ``block.modules()`` takes five times as long."""
    found: list[nn.Module] = [block]
    for module in found:  # grows
        found += [child for child in module._modules.values() if child is not None]
    return found


def _is_plain(modules: list[nn.Module], dtype: torch.dtype) -> bool:
    """Whether the operator computes what the modules compute."""
    for m in modules:
        kind = type(m)
        if kind not in _KINDS or m.training or "forward" in m.__dict__:
            return False
        if kind is LayerNorm and m.float32_output and dtype != torch.float32:
            return False
        if kind is nn.GELU and m.approximate != "none":
            return False
    return not has_hooks(*modules) and modules[0]._compiled_call_impl is None


def _state(block: Block, dtype: torch.dtype, parameters: Sequence[Tensor]) -> tuple[object, ...]:
    """What the packed weights depend on."""
    versions = [(id(p), p._version, p.data_ptr()) for p in parameters]
    return id(block), dtype, block.post_norm, versions


def _samples(views: list[NDArray[np.float32]]) -> list[float]:
    """First and middle value of each array; NaN never equals itself, so such weights are packed."""
    return [view.item(at) for view in views for at in (0, view.size // 2)]


def _packed(
    state: tuple[object, ...],
    block: Block,
    modules: list[nn.Module],
    parameters: Sequence[Tensor],
    dtype: torch.dtype,
) -> _Entry:
    # Sharded weights are tensors of other types, or attributes instead of parameters.
    is_whole = all(
        isinstance(m._parameters.get("weight"), nn.Parameter)
        for m in modules
        if isinstance(m, _WITH_WEIGHT)
    )
    is_float32 = all(
        type(p) is nn.Parameter and p.dtype == torch.float32 and p.device.type == "cpu"
        for p in parameters
    )
    if not (is_whole and is_float32 and can_fuse(block, dtype)):
        return _Entry(state, [*parameters, *(p.detach() for p in parameters)], [], [], None)
    views = [p.detach().numpy() for p in parameters]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _Entry(state, parameters, views, _samples(views), FusedBlock(block, dtype))
