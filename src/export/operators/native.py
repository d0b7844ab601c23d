"""Blocks, DCNv3 and DCNv4 as operators of our library for ONNX Runtime (``src/ops/csrc/onnx``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from src.export.library import DOMAIN

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
