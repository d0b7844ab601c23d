"""Write nodes into an ONNX graph, and join graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

FLOAT, INT64, DOUBLE, UINT8 = (
    int(ir.DataType[name]) for name in ("FLOAT", "INT64", "DOUBLE", "UINT8")
)
PREFIX = "result."
"""Begins the names of the nodes of a `Builder`, which keep their precision in 16-bit files."""
Operand = ir.Value | float | int | Sequence[float] | Sequence[int] | None


class Builder:
    """Appends nodes to a graph; ``builder.Add(x, 1.0)`` is a node of the operator ``Add``.

    Numbers and lists of numbers become constants, float32 or int64. Optional inputs that are left
    out are ``None``. With ``outputs=2`` a call returns a list of two values.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._count = 0

    def __getattr__(self, operator: str) -> Any:
        return partial(self._append, operator)

    def _append(
        self, operator: str, *inputs: Operand, outputs: int = 1, **attributes: Any
    ) -> ir.Value | list[ir.Value]:
        values = [x if x is None or isinstance(x, ir.Value) else self.constant(x) for x in inputs]
        given = ir.convenience.convert_attributes(attributes)
        self._count += 1
        name = f"{PREFIX}{operator}_{self._count}"
        node = ir.Node("", operator, values, attributes=given, num_outputs=outputs, name=name)
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def constant(self, value: Any, dtype: Any = None) -> ir.Value:
        """A constant; floats are float32 and integers int64 unless ``dtype`` says otherwise."""
        array = np.asarray(value)
        kind = dtype or (np.float32 if array.dtype.kind == "f" else np.int64)
        made = self._append("Constant", value=ir.tensor(array.astype(kind)))
        assert isinstance(made, ir.Value)
        return made

    def sides(self, x: ir.Value, *axes: int) -> list[ir.Value]:
        """Lengths of axes, each ``(1,)`` int64."""
        return [self.Shape(x, start=axis, end=axis + 1) for axis in axes]

    def rows(self, x: ir.Value, start: Operand, end: Operand, axis: int = 0) -> ir.Value:
        """``x[start:end]`` along an axis; the bounds are ``(1,)``."""
        bounds = [self.constant([x]) if isinstance(x, int) else x for x in (start, end)]
        sliced: ir.Value = self.Slice(x, *bounds, [axis])
        return sliced

    def column(self, x: ir.Value, index: int, axis: int = -1) -> ir.Value:
        """``x[..., index]``."""
        picked: ir.Value = self.Gather(x, index, axis=axis)
        return picked


def new_input(graph: ir.Graph, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
    """Add an input to a graph."""
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType[dtype]), shape=ir.Shape(list(shape)))
    graph.inputs.append(value)
    return value


def set_outputs(op: Builder, outputs: Mapping[str, tuple[ir.Value, str, Sequence[Any]]]) -> None:
    """Replace the outputs of a graph.

    Args:
        op: Builder of the graph.
        outputs: Values by name, each with its dtype and its shape, whose axes may have names.
    """
    op.graph.outputs.clear()
    for name, (value, dtype, shape) in outputs.items():
        renamed = op.Identity(value)
        renamed.name, renamed.shape = name, ir.Shape(list(shape))
        renamed.type = ir.TensorType(ir.DataType[dtype])
        op.graph.outputs.append(renamed)


def replace_input(graph: ir.Graph, name: str, value: ir.Value) -> None:
    """Let everything that reads an input of a graph read another value."""
    old = next(x for x in graph.inputs if x.name == name)
    ir.convenience.replace_all_uses_with(old, value)
    graph.inputs.remove(old)


def append_graph(
    graph: ir.Graph, part: ir.Model, inputs: Mapping[str, ir.Value], prefix: str
) -> dict[str, ir.Value]:
    """Move the nodes and weights of a model to the end of another graph.

    Args:
        graph: Where they go.
        part: The model, empty afterwards.
        inputs: Values of ``graph`` for each input of the model.
        prefix: Put before the names of nodes and values, which would otherwise clash.

    Returns:
        Outputs of the model by name.
    """
    outputs = {str(value.name): value for value in part.graph.outputs}
    part.graph.outputs.clear()
    for value in list(part.graph.inputs):
        ir.convenience.replace_all_uses_with(value, inputs[str(value.name)])
    weights = list(part.graph.initializers.values())
    part.graph.initializers.clear()
    nodes = list(part.graph)
    part.graph.remove(nodes)
    for weight in weights:
        weight.name = f"{prefix}.{weight.name}"
        graph.register_initializer(weight)
    for node in nodes:
        node.name = f"{prefix}.{node.name}"
        for value in node.outputs:
            value.name = None if value.name is None else f"{prefix}.{value.name}"
    graph.extend(nodes)
    return outputs


def finish(model: ir.Model) -> None:
    """Remove unused nodes of a model, sort the others, and make all names unique.

    ONNX Runtime computes unused nodes, such as the label map at the size of the network's input.
    Shapes of inner values are removed: axes of different parts may have the same name, which
    runtimes would take for the same length.
    """
    RemoveUnusedNodesPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    model.graph.sort()
    NameFixPass()(model)
