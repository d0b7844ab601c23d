"""A block as one operator, for inference on a CPU and for export."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from src.models.internimage.blocks import Block
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.own_layers import has_own_layers, is_block
from src.ops.cpu_block import (
    MULTIPLE,
    BlockOptions,
    BlockWeights,
    Norm,
    PackedLinear,
    block,
    is_available,
    pack_linear,
)


class FusedBlock:
    """`Block` with `DCNv3` and LayerNorm, in one call of the operator.

    Args:
        layer: A block that `can_fuse` accepts.
        dtype: Dtype of the feature maps.
    """

    def __init__(self, layer: Block, dtype: torch.dtype) -> None:
        assert isinstance(layer.dcn, DCNv3)
        self.width, self.dtype = layer.mlp.fc1.out_features, dtype
        self.tensors = _weights(layer, layer.dcn, dtype).tensors()
        self.options = _options(layer, layer.dcn)

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``, of the dtype of the block."""
        return block(x.to(self.dtype).contiguous(), self.tensors, self.options)


def can_fuse(layer: Block, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a block with LayerNorm on this CPU."""
    return is_available(dtype) and fits_operator(layer)


def fits_operator(layer: Block) -> bool:
    """Whether the operator computes a block with LayerNorm, on a CPU that has a kernel."""
    if not isinstance(layer.dcn, DCNv3):
        return False
    widths = layer.dcn.channels, layer.mlp.fc1.out_features
    epsilons = {module.eps for module in layer.modules() if isinstance(module, nn.LayerNorm)}
    return not any(width % MULTIPLE for width in widths) and len(epsilons) == 1


class FusedBlockModule(nn.Module):
    """`FusedBlock` in float32 with its weights as buffers, to be traced on any CPU.

    Args:
        layer: A block that `fits_operator` accepts.
    """

    def __init__(self, layer: Block) -> None:
        super().__init__()
        fused = FusedBlock(layer, torch.float32)
        self.options = fused.options
        self.names = [f"weight_{number:02}" for number in range(len(fused.tensors))]
        for name, tensor in zip(self.names, fused.tensors, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        return block(x, [self.get_buffer(name) for name in self.names], self.options)


def with_fused_blocks(network: nn.Module) -> nn.Module:
    """Copy of a network in evaluation mode, whose blocks are one operator each where it fits."""
    with torch.no_grad():
        fused: dict[int, Any] = {
            id(module): FusedBlockModule(module)
            for module in network.modules()
            if is_block(module) and has_own_layers(module) and fits_operator(module)
        }
    return copy.deepcopy(network, fused)  # takes what is in the second argument as copies


def _options(layer: Block, dcn: DCNv3) -> BlockOptions:
    return BlockOptions(
        dcn.groups,
        dcn.kernel_size,
        dcn.dw_conv.kernel_size[0],
        layer.mlp.fc1.out_features,
        dcn.offset_scale,
        dcn.remove_center,
        dcn.center_feature_scale_proj_weight is not None,
        dcn.dw_norm.eps,
    )


def _weights(layer: Block, dcn: DCNv3, dtype: torch.dtype) -> BlockWeights:
    assert dcn.dw_conv.bias is not None
    before = (None, None) if layer.post_norm else (layer.norm1, layer.norm2)
    after = (
        (layer.norm1, layer.norm2)
        if layer.post_norm
        else (layer.res_post_norm1, layer.res_post_norm2)
    )
    gammas = layer.gamma1, layer.gamma2
    weights: list[Tensor] = [dcn.offset.weight, dcn.mask.weight]
    biases: list[Tensor] = [dcn.offset.bias, dcn.mask.bias]
    gate = dcn.center_feature_scale_proj_weight, dcn.center_feature_scale_proj_bias
    if gate[0] is not None and gate[1] is not None:
        weights.append(gate[0])
        biases.append(gate[1])
    last_layers = (
        _scaled(linear, None if norm is not None else gamma, dtype)
        for linear, norm, gamma in zip((dcn.output_proj, layer.mlp.fc2), after, gammas, strict=True)
    )
    output_proj, fc2 = last_layers
    return BlockWeights(
        norm1=_norm(before[0]),
        last1=_norm(after[0], gammas[0]),
        norm2=_norm(before[1]),
        last2=_norm(after[1], gammas[1]),
        depthwise=_copy(dcn.dw_conv.weight[:, 0].permute(1, 2, 0)),
        depthwise_bias=_copy(dcn.dw_conv.bias),
        depthwise_norm=_norm(dcn.dw_norm),
        input_proj=pack_linear(dcn.input_proj.weight, dcn.input_proj.bias, dtype),
        points=pack_linear(torch.cat(weights), torch.cat(biases), dtype),
        output_proj=output_proj,
        fc1=pack_linear(layer.mlp.fc1.weight, layer.mlp.fc1.bias, dtype),
        fc2=fc2,
    )


def _copy(values: Tensor) -> Tensor:
    return values.detach().clone(memory_format=torch.contiguous_format)


def _norm(norm: nn.LayerNorm | None, gamma: Tensor | None = None) -> Norm:
    """Copy of a norm, whose result is multiplied by the layer scale."""
    if norm is None:
        return Norm()
    scale = 1 if gamma is None else gamma
    return Norm(_copy(norm.weight * scale), _copy(norm.bias * scale))


def _scaled(linear: nn.Linear, gamma: Tensor | None, dtype: torch.dtype) -> PackedLinear:
    """Copy of a layer, whose result is multiplied by the layer scale."""
    if gamma is None:
        return pack_linear(linear.weight, linear.bias, dtype)
    bias = None if linear.bias is None else linear.bias * gamma
    return pack_linear(linear.weight * gamma.unsqueeze(1), bias, dtype)
