"""Whether faster code stands for the layers of a network, or somebody has replaced a layer.

Packed weights and operators compute what the layers of this package compute. Subclasses, adapters,
parametrizations and forward passes of single instances have to be called.
"""

from __future__ import annotations

from typing import TypeGuard

from timm.layers.drop import DropPath
from torch import nn

from src.models.internimage.blocks import Block, Downsample
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.layers import MLP
from src.models.layers.linear import Linear
from src.models.layers.norm import LayerNorm, is_exact_gelu

KINDS = frozenset((Block, DCNv3, MLP, LayerNorm, Linear, nn.Conv2d, nn.GELU, nn.Dropout, DropPath))
"""Exact types of the modules of a block that the operator replaces.

Parametrizations, wrappers that shard or quantize, and layers of others have types of their own.
"""


def is_replaced(attributes: dict[str, object]) -> bool:
    """Whether a module has a forward pass of its own, or was compiled by itself."""
    return "forward" in attributes or "_compiled_call_impl" in attributes


def is_block(block: nn.Module) -> TypeGuard[Block]:
    """Whether a block has DCNv3 and an MLP, and not other mixers, which may have such layers."""
    return type(block) is Block and type(block.dcn) is DCNv3 and type(block.mlp) is MLP


def is_downsample(module: nn.Module) -> TypeGuard[Downsample]:
    """Whether the forward pass of a module is that of `Downsample`."""
    return type(module) is Downsample and not is_replaced(module.__dict__)


def has_own_layers(module: nn.Module) -> bool:
    """Whether a module and those inside are layers of a block, with their own forward passes."""
    modules = list(module.modules())
    return all(type(m) in KINDS and not is_replaced(m.__dict__) for m in modules) and all(
        is_exact_gelu(m) for m in modules if isinstance(m, nn.GELU)
    )


def is_dense(conv: nn.Conv2d) -> bool:
    """Whether `PackedConv` computes a convolution."""
    is_plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return is_plain and conv.groups == 1 and tuple(conv.dilation) == (1, 1)
