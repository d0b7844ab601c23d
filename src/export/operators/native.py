"""Operators of the library for ONNX Runtime (``src/ops/csrc/onnx``), and networks that use them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from src.models.internimage.blocks import Block
from src.models.internimage.fused_block import FusedBlock, fits_operator
from src.models.layers.norm import LayerNorm
from src.ops.cpu_block import block

DOMAIN = "internimage"
_Attributes = dict[str, OpSchema.AttrType]
_WINDOW: _Attributes = {
    **dict.fromkeys(("groups", "remove_center"), OpSchema.AttrType.INT),
    **dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), OpSchema.AttrType.INTS),
    "offset_scale": OpSchema.AttrType.FLOAT,
}
_BLOCK: _Attributes = {
    **dict.fromkeys(
        ("groups", "kernel_size", "dw_kernel_size", "hidden", "remove_center", "has_gate"),
        OpSchema.AttrType.INT,
    ),
    **dict.fromkeys(("offset_scale", "eps"), OpSchema.AttrType.FLOAT),
}


def _operator(name: str, inputs: Sequence[str], attributes: _Attributes) -> Any:
    """An operator of the domain; inputs whose names end in ``?`` are optional."""
    optional = OpSchema.FormalParameterOption.Optional
    required = OpSchema.FormalParameterOption.Single
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(
                name.rstrip("?"), "T", param_option=optional if name.endswith("?") else required
            )
            for name in inputs
        ],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)"], "float32")],
        attributes=[OpSchema.Attribute(key, kind) for key, kind in attributes.items()],
    )
    return Op(Opset(DOMAIN, 1), name, schema)


_NORMS = [f"{norm}_{part}?" for norm in ("norm1", "last1", "norm2", "last2") for part in ("w", "b")]
_block = _operator("Block", ["x", *_NORMS, *(f"weight_{i:02}" for i in range(8, 22))], _BLOCK)
_dcnv3 = _operator(
    "DCNv3", ["input", "offset", "mask"], {**_WINDOW, "mask_softmax": OpSchema.AttrType.INT}
)
_dcnv4 = _operator("DCNv4", ["input", "offset_mask"], _WINDOW)


class NativeBlock(nn.Module):
    """A block of a backbone as one node.

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


def with_native_blocks(network: nn.Module) -> nn.Module:
    """Copy of a network in evaluation mode whose blocks are nodes, where the operator fits."""
    with torch.no_grad():
        nodes: dict[int, Any] = {
            id(module): NativeBlock(module)
            for module in network.modules()
            if isinstance(module, Block) and _fits(module)
        }
    return copy.deepcopy(network, nodes)  # takes what is in the second argument as copies


def _fits(layer: Block) -> bool:
    return isinstance(layer.norm1, LayerNorm) and fits_operator(layer)


def cpu_block(
    x: Any,
    tensors: Sequence[Any],
    groups: int,
    kernel: Sequence[int],
    hidden: int,
    offset_scale: float,
    remove_center: bool,
    has_gate: bool,
    eps: float,
) -> Any:
    """See `src.ops.cpu_block`."""
    weights = [None if tuple(tensor.shape) == (0,) else tensor for tensor in tensors]
    return _block(
        x,
        *weights,
        groups=groups,
        kernel_size=kernel[0],
        dw_kernel_size=kernel[1],
        hidden=hidden,
        offset_scale=offset_scale,
        remove_center=int(remove_center),
        has_gate=int(has_gate),
        eps=eps,
    )


def dcnv3(
    input: Any,
    offset: Any,
    mask: Any,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    mask_softmax: bool,
) -> Any:
    """See `src.ops.dcnv3`."""
    window = _window(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    return _dcnv3(input, offset, mask, **window, mask_softmax=int(mask_softmax))


def dcnv4(
    input: Any,
    offset_mask: Any,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> Any:
    """See `src.ops.dcnv4`."""
    window = _window(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    return _dcnv4(input, offset_mask, **window)


def _window(
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> dict[str, Any]:
    return {
        "groups": groups,
        "kernel_size": list(kernel_size),
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "offset_scale": offset_scale,
        "remove_center": int(remove_center),
    }
