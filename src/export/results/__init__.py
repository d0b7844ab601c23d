"""From the graphs of a network to one ONNX model: image in, result out.

- ``builder.py``: writes nodes and joins graphs.
- ``preprocessing.py``: from an 8-bit image to the network's input.
- ``dense.py``: classifiers and segmentors; ``queries.py``: DINO; ``regions.py``: Mask R-CNN and
  Cascade Mask R-CNN, with ``boxes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from src.export.results import dense
from src.export.results.builder import Builder, finish, new_input, replace_input, set_outputs
from src.export.results.preprocessing import Prepared, prepare
from src.export.results.queries import query_detections
from src.export.results.regions import region_detections
from src.models.graphs import ClassResult, Graph, LabelMapResult, QueryResult

PREPARED = "prepared"
"""Name of the normalised image in a graph with preprocessing."""
NETWORK = "network."
"""Begins the names of the values in a graph that are outputs of the network."""


def assemble(
    graphs: Sequence[Graph],
    models: Mapping[str, ir.Model],
    classes: int,
    settings: Mapping[str, Any] | None,
    masks: str = "box",
) -> ir.Model:
    """Join the graphs of a network with preprocessing and post-processing.

    Args:
        graphs: Graphs of the network.
        models: Each graph as an ONNX model, by name; they are used up.
        classes: Number of classes.
        settings: Preprocessing of the recipe, see `prepare`; ``None`` leaves it out, and the input
            is the network's.
        masks: See `region_detections`.

    Returns:
        The model. Detectors take one image, the others any number of images of one size.
    """
    result = graphs[0].result
    model = models[graphs[0].name]
    graph, outputs = model.graph, _named(model.graph.outputs)
    for name, value in outputs.items():  # results may have the same names
        value.name = f"{NETWORK}{name}"
    op = Builder(graph)
    batch: int | str = "batch" if isinstance(result, ClassResult | LabelMapResult) else 1
    divisor = getattr(result, "divisor", 1)
    prepared, image = _input(op, settings, divisor, batch)
    if isinstance(result, ClassResult):
        found = dense.class_probabilities(outputs, classes)
    elif isinstance(result, LabelMapResult):
        found = dense.label_map(op, outputs, prepared, classes)
    elif isinstance(result, QueryResult):
        found = query_detections(op, outputs, image, prepared, result)
    elif result is not None:
        if prepared is None:
            size = new_input(graph, "size", "INT64", [2])
            frame: Any = (size, None, size)
        else:
            frame = (prepared.size, prepared.factor, prepared.original)
        parts = {name: part for name, part in models.items() if name != graphs[0].name}
        found = region_detections(op, outputs, parts, frame, result, masks)
    else:
        raise ValueError(f"the graph {graphs[0].name} has no result")
    set_outputs(op, found)
    finish(model)
    return model


def _input(
    op: Builder, settings: Mapping[str, Any] | None, divisor: int, batch: int | str
) -> tuple[Prepared | None, ir.Value]:
    """Give a graph its input; returns the preprocessing, and the input of the network."""
    (network_input,) = op.graph.inputs
    if settings is None:
        height, width = "height", "width"
        network_input.shape = ir.Shape([batch, 3, height, width])
        return None, network_input
    network_input.name = "network_input"
    pixels = new_input(op.graph, "image", "UINT8", [batch, "height", "width", 3])
    prepared = prepare(op, pixels, settings, divisor)
    prepared.image.name = PREPARED
    replace_input(op.graph, "network_input", prepared.image)
    return prepared, prepared.image


def _named(values: Sequence[ir.Value]) -> dict[str, ir.Value]:
    return {str(value.name): value for value in values}
