"""Copies of ONNX files with smaller weights: float16, and linear layers in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from src import files
from src.errors import UserError
from src.export.files import LARGEST_SINGLE_FILE, read_onnx
from src.export.packages import require, silence
from src.export.results.builder import PREFIX

_HALF = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with weights that compute in float16."""


def write_half(path: Path) -> Path:
    """Write ``<name>.fp16.onnx``: linear layers, convolutions and their weights in float16.

    Inputs, outputs, norms and everything around the network stay float32. Sampling locations are
    computed in float32 from offsets that are rounded to float16.
    ``onnxruntime.transformers.float16`` would need the same list of exceptions, and writes nodes of
    equal names where several of them read one weight.

    Args:
        path: A float32 file.
    """
    model = read_onnx(path)
    import onnx
    import onnx_ir as ir

    converted = ir.from_proto(model)
    graph = converted.graph
    used: dict[ir.Value | None, int] = {}
    for node in graph:
        for value in node.inputs:
            used[value] = used.get(value, 0) + 1
    for node in list(graph):
        weights = [value for value in node.inputs[1:] if value is not None]
        if (
            node.op_type not in _HALF
            or node.name.startswith(PREFIX)
            or any(w.const_value is None or not w.is_initializer() for w in weights)
            or any(used[w] > 1 for w in weights)
        ):
            continue
        for weight in weights:
            array = weight.const_value.numpy().astype(np.float16)
            weight.const_value = ir.tensor(array, name=weight.name)
            weight.dtype = ir.DataType.FLOAT16
        _cast(node)
    result = path.with_name(f"{path.stem}.fp16.onnx")
    files.write_bytes(result, ir.to_proto(converted).SerializeToString())
    onnx.checker.check_model(result)
    return result


def _cast(node: Any) -> None:
    """Let a node compute in float16 between casts."""
    import onnx_ir as ir

    before = ir.node("Cast", [node.inputs[0]], {"to": int(ir.DataType.FLOAT16)})
    before.name = f"{node.name}_to_half"
    before.outputs[0].name = f"{node.name}_half_input"
    node.graph.insert_before(node, before)
    node.replace_input_with(0, before.outputs[0])
    result = node.outputs[0]
    after = ir.node("Cast", [result], {"to": int(ir.DataType.FLOAT)})
    after.name = f"{node.name}_to_float"
    ir.convenience.replace_all_uses_with(result, after.outputs[0], replace_graph_outputs=True)
    after.replace_input_with(0, result)
    after.outputs[0].name, result.name = result.name, f"{node.name}_half_output"
    after.outputs[0].dtype, after.outputs[0].shape = result.dtype, result.shape
    result.dtype = ir.DataType.FLOAT16
    node.graph.insert_after(node, after)


def write_int8(path: Path) -> Path:
    """Write ``<name>.int8.onnx``: linear layers with 8-bit weights, one scale per channel.

    Their inputs are quantised while running, each with its own range.

    Args:
        path: A float32 file.
    """
    model = read_onnx(path)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # shapes of weights that the quantisation transposes
    result = path.with_name(f"{path.stem}.int8.onnx")
    # The advice to prepare the file is for static quantisation.
    with files.whole_file(result) as part, silence():
        quantize_dynamic(
            model,
            part,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    onnx.checker.check_model(result)
    return result


CONVERSIONS: dict[str, Callable[[Path], Path]] = {"float16": write_half, "int8": write_int8}
"""Functions that write a copy of a float32 file, by precision."""


def check_convertible(network: nn.Module) -> None:
    """Check that files of other precisions can be written, which takes a long time otherwise.

    Args:
        network: The network in float32.

    Raises:
        UserError: If ONNX Runtime is missing or the network is too large.
    """
    require("Files of other precisions", "onnxruntime")
    size = sum(weight.nbytes for weight in network.state_dict().values())
    if size > LARGEST_SINGLE_FILE:
        raise UserError(
            f"{type(network).__name__} has {size / 1e9:.1f} GB of weights; only up to 1.9 GB can "
            "be converted. Leave float16 and int8 out of --precision."
        )
