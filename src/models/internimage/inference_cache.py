"""Blocks with packed weights during evaluation on a CPU, while their weights do not change.

`prepare_for_inference` makes a copy; here, the network stays as it is, and packed weights are kept
beside the parameters. Blocks run as one operator under autocast to bfloat16, which would cast all
weights in every forward pass, and in compiled networks, whose users ask for speed. Eager float32
stays layer by layer: it is the reference of the published numbers. Its linear layers and the
downsampling have packed weights, because oneDNN would reorder weights in every forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from src.models.internimage.blocks import Block
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.fused_block import FusedBlock, can_fuse
from src.models.internimage.own_layers import (
    has_own_layers,
    is_block,
    is_dense,
    is_downsample,
    is_replaced,
)
from src.models.internimage.packed_block import PackedBlock
from src.models.internimage.packed_conv import PackedConv, can_pack
from src.models.internimage.parts import is_unobserved
from src.models.layers.compilation import Compilation
from src.models.layers.linear import Linear
from src.models.layers.norm import HOOKS, LayerNorm, has_hooks
from src.models.layers.precision import autocast_dtype, without_autocast
from src.ops._load import LIBRARIES
from src.ops.cpu_block import is_available

_WITH_WEIGHT = (LayerNorm, Linear, nn.Conv2d)
_OPTIONS = {
    Block: ("post_norm",),
    DCNv3: ("groups", "kernel_size", "offset_scale", "remove_center"),
    LayerNorm: ("eps", "float32_output"),
    nn.GELU: ("approximate",),
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
}
"""Attributes that the operator depends on."""

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class InferenceCache:
    """Packed weights of a stage, made at first use and again after a change.

    Training mode, a forward pass with gradients and moving the network empty the cache. Copies and
    files of a network do not contain it.
    """

    def __init__(self) -> None:
        self._entries: dict[object, _Entry] = {}

    def __reduce__(self) -> tuple[type[InferenceCache], tuple[()]]:
        return InferenceCache, ()

    def clear(self) -> None:
        """Free the packed weights."""
        self._entries.clear()

    def packed_blocks(
        self, blocks: Iterable[nn.Module], x: Tensor
    ) -> dict[int, FusedBlock | PackedBlock]:
        """The blocks that have packed weights in this forward pass, by their number.

        Args:
            blocks: All blocks of the stage.
            x: Feature map ``(N, H, W, C)``.
        """
        if not is_unobserved(x):
            return {}
        if torch.is_grad_enabled():
            self.clear()
            return {}
        found: dict[int, FusedBlock | PackedBlock] = {}
        autocast = autocast_dtype("cpu")
        is_packed = autocast is None and x.dtype == torch.float32 and _has_packed(x.dtype)
        for index, block in enumerate(blocks):
            if not is_block(block):
                continue
            packed: FusedBlock | PackedBlock | None = None
            dtype = _dtype(x.dtype, block.compilation)
            if dtype is not None:
                packed = self._packed(index, block, dtype, can_fuse, FusedBlock)
            elif is_packed and block.compilation is None:
                packed = self._packed(index, block, x.dtype, _always, PackedBlock)
            if packed is not None:
                found[index] = packed
        return found

    def packed_conv(self, downsample: nn.Module, x: Tensor) -> PackedConv | None:
        """The convolution of `Downsample` with packed weights, if there is a kernel for it.

        In float32, too: PyTorch would reorder its weights in every forward pass.

        Args:
            downsample: The step to the next stage.
            x: Feature map ``(N, H, W, C)`` in a forward pass for which `can_split` is true.
        """
        if not is_downsample(downsample):
            return None
        dtype = autocast_dtype("cpu") or x.dtype
        if dtype not in (torch.float32, torch.bfloat16) or not _has_packed(dtype):
            return None
        return self._packed("conv", downsample.conv, dtype, _is_dense, PackedConv)

    def _packed(
        self,
        key: object,
        module: M,
        dtype: torch.dtype,
        has_kernel: Callable[[M, torch.dtype], bool],
        make: Callable[[M, torch.dtype], T],
    ) -> T | None:
        entry = self._entries.get(key)
        if entry is None or entry.make is not make or not entry.is_valid(module, dtype):
            self._entries.pop(key, None)  # free before packing
            if not (_is_plain(module, dtype) and has_kernel(module, dtype)):
                return None
            with torch.inference_mode(False), torch.no_grad(), without_autocast("cpu"):
                entry = _Entry(module, dtype, make)
            self._entries[key] = entry
        packed: T = entry.packed
        return packed


class _Entry:
    """Packed weights of a module, and what they were made of.

    An entry is valid as long as submodules, options, parameters, and addresses and versions of the
    parameters are the same: all operators of PyTorch count when they write into a tensor. Writing
    through ``parameter.data`` is not counted; it is seen if it changes the first or the middle
    value of a parameter, as scaling, averaging and loading do.

    The check runs in every forward pass, so that it reads flat lists of what it looks at. What is
    compared by ``id`` or address is kept, so that nothing else gets the same one.
    """

    def __init__(
        self, module: M, dtype: torch.dtype, make: Callable[[M, torch.dtype], object]
    ) -> None:
        self.dtype, self.make = dtype, make
        self.packed: Any = make(module, dtype)
        self._modules = list(module.modules())
        self._attributes = [m.__dict__ for m in self._modules]
        self._hooks = [values[name] for values in self._attributes for name in HOOKS]
        self._owned: list[dict[str, Any]] = [m._parameters for m in self._modules]
        self._owned += [m._modules for m in self._modules if m._modules]
        self._parameters = list(module.parameters())
        # Views and not arrays, because the memory of an array could not be resized any more.
        flat = [p.detach().view(-1) for p in self._parameters]
        self._values = [values[at] for values in flat for at in (0, len(values) // 2)]
        self._options = [
            (values, name, values.get(name))
            for m, values in zip(self._modules, self._attributes, strict=True)
            for name in _OPTIONS.get(type(m), ())
        ]
        self._state, self._samples = self._read(), torch.stack(self._values)

    def is_valid(self, module: nn.Module, dtype: torch.dtype) -> bool:
        """Whether the operator still computes what the modules compute."""
        attributes = self._attributes
        return not (
            module is not self._modules[0]
            or dtype != self.dtype
            or any(self._hooks)
            or any(map(_TRAINING, attributes))
            or any(map(is_replaced, attributes))
            or any(values.get(name) != value for values, name, value in self._options)
            or self._read() != self._state
            # Last, because memory that was freed has another address. NaN is never the same, so
            # that such weights are packed again.
            or not torch.equal(torch.stack(self._values), self._samples)
        )

    def _read(self) -> tuple[object, ...]:
        owned = chain.from_iterable(values.values() for values in self._owned)
        return (
            list(map(id, owned)),
            list(map(type, self._modules)),
            list(map(_VERSION, self._parameters)),
            list(map(Tensor.data_ptr, self._parameters)),
            all(map(Tensor.is_contiguous, self._parameters)),  # a transposed one has its address
        )


_TRAINING, _VERSION = itemgetter("training"), attrgetter("_version")


def _always(module: nn.Module, dtype: torch.dtype) -> bool:
    """For linear layers: oneDNN has packed products of all sizes."""
    return True


def _is_dense(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
    return is_dense(conv)


def _has_packed(dtype: torch.dtype) -> bool:
    """Whether layers may have packed weights of oneDNN."""
    is_wanted = LIBRARIES.mode != "reference" and torch.backends.mkldnn.enabled
    return bool(is_wanted) and can_pack(dtype)


def _dtype(given: torch.dtype, compilation: Compilation | None) -> torch.dtype | None:
    """Dtype of the operator for feature maps of a dtype; ``None`` for layer by layer."""
    dtype = autocast_dtype("cpu")
    if dtype is None:
        is_wanted = compilation is not None and given == torch.float32
        return given if is_wanted and is_available(given) else None
    is_wanted = dtype == torch.bfloat16 and given in (torch.float32, torch.bfloat16)
    return dtype if is_wanted and is_available(dtype) else None


def _is_plain(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether packed weights stand for a module, and every change of a weight is seen."""
    modules = list(module.modules())
    if any(m.training for m in modules) or not has_own_layers(module):
        return False
    is_wide = any(isinstance(m, LayerNorm) and m.float32_output for m in modules)
    # Sharding may leave other tensors where parameters were, which nobody watches.
    is_whole = all(
        isinstance(m._parameters.get("weight"), nn.Parameter)
        for m in modules
        if isinstance(m, _WITH_WEIGHT)
    ) and not any(isinstance(value, Tensor) for m in modules for value in m.__dict__.values())
    return (
        not has_hooks(*modules)
        and (dtype == torch.float32 or not is_wide)
        and is_whole
        and all(map(_can_watch, module.parameters()))
    )


def _can_watch(p: Tensor) -> bool:
    """Whether a parameter is plain; those made in inference mode have no versions."""
    is_plain = type(p) is nn.Parameter and p.is_cpu and not p.is_inference()
    return is_plain and p.dtype == torch.float32 and p.is_contiguous()
