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
    # The maximum of a softmax without the softmax, which takes ONNX Runtime three times as long on
    # this axis.
    largest = op.ReduceMax(logits, [1], keepdims=1)
    total = op.ReduceSum(op.Exp(op.Sub(logits, largest)), [1], keepdims=0)
    if outputs["logits"].shape is None or outputs["logits"].shape[1] != classes:
        logits = op.Slice(logits, [0], [classes], [1])
    labels = op.ArgMax(logits, axis=1, keepdims=0)
    best = op.ReduceMax(logits, [1], keepdims=0)
    scores = op.Div(op.Exp(op.Sub(best, op.Squeeze(largest, [1]))), total)
    shape = ["batch", "height", "width"]
    return {"label_map": (labels, "INT64", shape), "scores": (scores, "FLOAT", shape)}
