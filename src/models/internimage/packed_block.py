"""A block layer by layer, with packed weights of its linear layers, for evaluation on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.internimage.blocks import Block
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.packed_conv import can_pack


class PackedLinear:
    """Linear layer with a weight in the layout of oneDNN, where PyTorch has it.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``, or ``None``.
        dtype: float32 or bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype, copy=True)
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.is_packed = can_pack(dtype)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """``(..., in) -> (..., out)``, then GELU, or the sum with ``add``."""
        if self.is_packed and add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        if self.is_packed:
            name, variant = ("gelu", "none") if gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)
        out = F.linear(x, self.weight, self.bias)
        out = F.gelu(out) if gelu else out
        return out if add is None else out.add_(add)


class PackedBlock:
    """`Block` with `DCNv3`, whose linear layers have packed weights; its other layers are called.

    Args:
        block: The block.
        dtype: Dtype of the feature maps.
    """

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        assert isinstance(block.dcn, DCNv3)
        self.block, self.dcn = block, block.dcn
        self.width, self.dtype = block.mlp.fc1.out_features, dtype
        self.input_proj, self.output_proj, self.fc1, self.fc2 = (
            PackedLinear(layer.weight, layer.bias, dtype)
            for layer in (self.dcn.input_proj, self.dcn.output_proj, block.mlp.fc1, block.mlp.fc2)
        )
        self.points = PackedLinear(*self.dcn.points(), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        return self.block.branches(x, self._mix, self._mlp)

    def _mix(self, x: Tensor) -> Tensor:
        return self.dcn.mix(x, self.input_proj, self.points, self.output_proj)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x, gelu=True))
