"""Size and cost of the named variants.

Counts parameters and multiply-accumulates (MACs), and measures the activations that a training step
saves for its backward pass. Everything runs on the meta device, without weights or arithmetic, in
seconds even for the 3 B network. ``docs/model_zoo.md`` tells what the published numbers count.

Speed is measured by ``benchmarks/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.blocks import Block
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.models.internimage.heads import AttentionPool

MACS_PER_SAMPLE = 5
"""MACs of one bilinear sample of one channel with its weight, as the official code counts them."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        conv: Convolution modules.
        linear: Linear modules, including the offset and mask layers of DCNv3.
        products: Matrix products outside modules: centre scales, attention pooling.
        sampling: Sampling of DCNv3 and DCNv4 at 5 per sampled value.
    """

    conv: int = 0
    linear: int = 0
    products: int = 0
    sampling: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            self.conv + other.conv,
            self.linear + other.linear,
            self.products + other.products,
            self.sampling + other.sampling,
        )

    @property
    def modules(self) -> int:
        """Convolution and linear modules."""
        return self.conv + self.linear

    @property
    def total(self) -> int:
        """All multiply-accumulates."""
        return self.modules + self.products + self.sampling


@dataclass(frozen=True)
class Activations:
    """Bytes of activations that a training step saves for its backward pass.

    Attributes:
        plain: Without activation checkpointing.
        checkpointed: With one checkpoint per block.
        recomputed: Additional bytes while the largest block is recomputed.
    """

    plain: int
    checkpointed: int
    recomputed: int


@dataclass(frozen=True)
class PublishedMacs:
    """Number in the paper or the official model zoo, called FLOPs there.

    Attributes:
        text: The number as printed.
        rule: How it follows from our counts, in words; empty if no rule reproduces it.
        compute: Giga-MACs as printed, from our counts.
    """

    text: str
    rule: str = ""
    compute: Callable[[Macs], int] | None = None


def _rounded(macs: Macs) -> int:
    return round((macs.modules + macs.sampling) / 1e9)


_MODULES_AND_SAMPLING = "modules + sampling, rounded"
PUBLISHED_PARAMETERS = {
    "internimage_t": "30M",
    "internimage_s": "50M",
    "internimage_b": "97M",
    "internimage_l": "223M",
    "internimage_xl": "335M",
    "internimage_h": "1.08B",
    "internimage_g": "3B",
}
PUBLISHED_MACS = {
    ("internimage_t", 224): PublishedMacs("5G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_s", 224): PublishedMacs("8G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_b", 224): PublishedMacs("16G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_l", 384): PublishedMacs("108G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_xl", 384): PublishedMacs("163G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_h", 224): PublishedMacs("188G"),
    ("internimage_h", 640): PublishedMacs(
        "1478G", "modules without sampling, rounded down", lambda m: m.modules // 10**9
    ),
    ("internimage_g", 512): PublishedMacs(
        "2700G",
        "modules + sampling, rounded to 10G",
        lambda m: 10 * round((m.modules + m.sampling) / 1e10),
    ),
}
"""Published numbers by variant and image size."""


def count_parameters(network: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, image: Tensor) -> Macs:
    """Count the multiply-accumulates of one forward pass.

    Norms, activations, biases, softmax and residual additions are not counted, as usual.

    Args:
        network: Network of layers of this project; the meta device is recommended.
        image: Input of shape ``(N, 3, H, W)`` on the same device.

    Returns:
        The count for the whole batch.
    """
    found = [Macs()]

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(macs_of(module, inputs, output))

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            hooks.callback(module.register_forward_hook(add).remove)
        network.eval()(image)
    return sum(found[1:], found[0])


@singledispatch
def macs_of(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Macs:
    """Multiply-accumulates of a module itself, without those of the modules inside it.

    Register the rule of a custom layer with ``@macs_of.register``.

    Args:
        module: The module.
        inputs: Arguments of its forward pass.
        output: Result of its forward pass.
    """
    return Macs()


@macs_of.register
def _(module: nn.Conv2d, inputs: tuple[Any, ...], output: Any) -> Macs:
    return Macs(conv=output.numel() * module.weight[0].numel())


@macs_of.register
def _(module: nn.Linear, inputs: tuple[Any, ...], output: Any) -> Macs:
    return Macs(linear=output.numel() * module.in_features)


@macs_of.register
def _(module: DCNv3, inputs: tuple[Any, ...], output: Any) -> Macs:
    # A matrix product outside of modules, see DCNv3.
    rows = module.offset.out_features + module.mask.out_features
    has_gate = module.center_feature_scale_proj_weight is not None
    return Macs(
        linear=output.numel() * rows,
        products=output.numel() * module.groups if has_gate else 0,
        sampling=MACS_PER_SAMPLE * module.num_points * output.numel(),
    )


@macs_of.register
def _(module: DCNv4, inputs: tuple[Any, ...], output: Any) -> Macs:
    has_gate = module.center_feature_scale_proj_weight is not None
    return Macs(
        products=output.numel() * module.groups if has_gate else 0,
        sampling=MACS_PER_SAMPLE * module.num_points * output.numel(),
    )


@macs_of.register
def _(module: nn.MultiheadAttention, inputs: tuple[Any, ...], output: Any) -> Macs:
    # Its output layer is not called as a module.
    query, key, value = inputs[:3]
    width, keys = module.embed_dim, key.shape[1]
    projections = width * (2 * query.numel() + key.numel() + value.numel())
    return Macs(products=projections + 2 * keys * query.numel())


@macs_of.register
def _(module: AttentionPool, inputs: tuple[Any, ...], output: Any) -> Macs:
    projections = sum(x.numel() * x.shape[-1] for x in inputs)
    scores_and_mean = 2 * inputs[1].numel()
    return Macs(products=projections + scores_and_mean)


class _SavedBytes:
    """Sum of the bytes of storages, each counted once, without the ignored ones."""

    def __init__(self, ignored: Sequence[Tensor]) -> None:
        # A reference to the storage keeps its address from being reused.
        self.storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in ignored}
        self.total = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor


def measure_activations(network: InternImageBackbone, image: Tensor) -> Activations:
    """Measure what autograd saves between the forward and the backward pass.

    Counts the storages that operations save, once each. Parameters, optimizer state, gradients,
    workspace and fragmentation need additional memory.

    Args:
        network: A backbone or classifier of this project; the meta device is recommended.
        image: Input of shape ``(N, 3, H, W)`` on the same device; sets the dtype.

    Returns:
        Bytes for the whole batch.
    """
    network.train()
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    plain, largest = _forward_bytes(network, image, blocks, checkpointing=False)
    kept, _ = _forward_bytes(network, image, blocks, checkpointing=True)
    return Activations(plain, kept, largest)


def _forward_bytes(
    network: InternImageBackbone, image: Tensor, blocks: list[Block], checkpointing: bool
) -> tuple[int, int]:
    """Bytes saved by the whole network, and by its largest block."""
    saved = _SavedBytes([image, *network.parameters(), *network.buffers()])
    before: dict[nn.Module, int] = {}
    per_block: list[int] = [0]

    def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if checkpointing:
            saved.add(inputs[0])  # a checkpoint saves its input outside of autograd
        before[block] = saved.total

    def leave(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        per_block.append(saved.total - before[block])

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(saved.add, lambda t: t))
        network.set_grad_checkpointing(checkpointing)
        network(image)
    network.set_grad_checkpointing(False)
    return saved.total, max(per_block)
