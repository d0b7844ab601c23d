"""Detections of DINO and CB-DINO from the predictions of their queries."""

from __future__ import annotations

import onnx_ir as ir

from src.export.results.boxes import best, clip, take
from src.export.results.builder import FLOAT, Builder
from src.export.results.dense import Outputs
from src.export.results.preprocessing import Prepared
from src.models.graphs import QueryResult


def query_detections(
    op: Builder,
    outputs: dict[str, ir.Value],
    image: ir.Value,
    prepared: Prepared | None,
    result: QueryResult,
) -> Outputs:
    """Boxes, scores and labels of one image; see `DINOHead.detect`."""
    logits, boxes = (op.Squeeze(outputs[name], [0]) for name in ("logits", "boxes"))
    (classes,) = op.sides(logits, 1)
    scores, index = best(op, op.Reshape(op.Sigmoid(logits), [-1]), result.max_detections)
    labels = op.Mod(index, classes)
    centre, extent = op.Split(
        take(op, boxes, op.Div(index, classes)), axis=1, num_outputs=2, outputs=2
    )
    size = op.Shape(image, start=2, end=4) if prepared is None else prepared.size
    half = op.Mul(extent, 0.5)
    corners = op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=1)
    pixels = op.Mul(corners, op.Gather(op.Cast(size, to=FLOAT), [1, 0, 1, 0], axis=0))
    found = clip(op, pixels, size)
    if prepared is not None:
        found = op.Div(found, prepared.factor)
    return {
        "boxes": (found, "FLOAT", ["detections", 4]),
        "scores": (scores, "FLOAT", ["detections"]),
        "labels": (labels, "INT64", ["detections"]),
    }
