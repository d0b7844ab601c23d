"""Results of classifiers and segmentors."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from src.export.results.builder import Builder
from src.export.results.preprocessing import Prepared

Outputs = dict[str, tuple[ir.Value, str, list[Any]]]


def class_probabilities(outputs: dict[str, ir.Value], classes: int) -> Outputs:
    """``probabilities (batch, classes)``."""
    return {"probabilities": (outputs["probabilities"], "FLOAT", ["batch", classes])}


def label_map(
    op: Builder, outputs: dict[str, ir.Value], prepared: Prepared | None, classes: int
) -> Outputs:
    """``label_map`` and ``scores``, ``(batch, height, width)``, at the size of the input.

    Args:
        op: Builder of the graph.
        outputs: ``logits`` at the size of the network's input.
        prepared: Preprocessing in the graph, if it is there.
        classes: Number of classes; further outputs of the network only count in the softmax.
    """
    logits = outputs["logits"]
    if prepared is not None:
        sizes = op.Concat(op.Shape(logits, start=0, end=2), prepared.original, axis=0)
        logits = op.Resize(
            logits, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel"
        )
    # Channels last: ONNX Runtime takes several times as long for a softmax and the best class on
    # another axis. The same for `ArgMax`, compared with `TopK`.
    probabilities = op.Softmax(op.Transpose(logits, perm=[0, 2, 3, 1]), axis=3)
    if outputs["logits"].shape is None or outputs["logits"].shape[1] != classes:
        probabilities = op.Slice(probabilities, [0], [classes], [3])
    scores, labels = (op.Squeeze(x, [3]) for x in op.TopK(probabilities, [1], axis=3, outputs=2))
    shape = ["batch", "height", "width"]
    return {"label_map": (labels, "INT64", shape), "scores": (scores, "FLOAT", shape)}
