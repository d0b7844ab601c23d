"""Detections of Mask R-CNN and Cascade Mask R-CNN: proposals, box heads, NMS and masks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from src.export.results.boxes import apart, best, decode, take
from src.export.results.builder import FLOAT, Builder, append_graph
from src.export.results.dense import Outputs
from src.models.detection.rcnn.graphs import LEVELS
from src.models.detection.rcnn.mask_head import MASK_SIDE
from src.models.graphs import RegionResult


def region_detections(
    op: Builder,
    pyramid: dict[str, ir.Value],
    parts: dict[str, ir.Model],
    frame: tuple[ir.Value, ir.Value | None, ir.Value],
    result: RegionResult,
    masks: str,
) -> Outputs:
    """Boxes, scores, labels and masks of one image; see `RoIHead.detect`.

    Args:
        op: Builder of the graph.
        pyramid: Outputs of the part ``backbone``.
        parts: The other parts: ``boxes`` or ``boxes_1``, ..., and ``masks`` if the
            detector has them.
        frame: Height and width of the image without padding, the scale from the input to it
            (``None`` is 1), and height and width of the input.
        result: Limits of the network.
        masks: ``box`` for probabilities in the boxes, ``image`` for masks of the whole image.
    """
    size, factor, original = frame
    features = {name: pyramid[name] for name in LEVELS}
    boxes = _proposals(op, pyramid, size, result)
    stages = sorted(name for name in parts if name.startswith("boxes"))
    logits = []
    for number, name in enumerate(stages):
        given = {**features, "rois": _with_image(op, boxes)}
        found = append_graph(op.graph, parts[name], given, name)
        logits.append(found["logits"])
        stds = result.stds[number]
        if number < len(stages) - 1:
            labels = op.ArgMax(op.rows(found["logits"], 0, -1, axis=1), axis=1, keepdims=1)
            of_class = op.GatherND(found["offsets"], labels, batch_dims=1)
            boxes = decode(op, boxes, of_class, stds, size)
        else:
            boxes = decode(op, op.Unsqueeze(boxes, [1]), found["offsets"], stds, size)
    mean = op.Mean(*logits) if len(logits) > 1 else logits[0]
    scores = op.rows(op.Softmax(mean, axis=1), 0, -1, axis=1)  # (R, C)
    if factor is not None:
        boxes = op.Div(boxes, factor)
    found_boxes, found_scores, found_labels = _select(op, boxes, scores, result)
    outputs: Outputs = {
        "boxes": (found_boxes, "FLOAT", ["detections", 4]),
        "scores": (found_scores, "FLOAT", ["detections"]),
        "labels": (found_labels, "INT64", ["detections"]),
    }
    if result.mask_threshold is None:
        return outputs
    scaled = found_boxes if factor is None else op.Mul(found_boxes, factor)
    given = {**features, "rois": _with_image(op, scaled), "labels": found_labels}
    probabilities = append_graph(op.graph, parts["masks"], given, "masks")["masks"]
    if masks == "box":
        outputs["masks"] = (probabilities, "FLOAT", ["detections", MASK_SIDE, MASK_SIDE])
    else:
        pasted = _paste(op, probabilities, found_boxes, original, result.mask_threshold)
        outputs["masks"] = (pasted, "BOOL", ["detections", "height", "width"])
    return outputs


def _with_image(op: Builder, boxes: ir.Value) -> ir.Value:
    """Boxes of the only image of a batch as ``(R, 5)``."""
    padded: ir.Value = op.Pad(boxes, [0, 1, 0, 0])
    return padded


def _proposals(
    op: Builder, pyramid: dict[str, ir.Value], size: ir.Value, result: RegionResult
) -> ir.Value:
    """Proposals ``(R, 4)``; see `RPNHead.propose`."""
    objectness, offsets = (op.Squeeze(pyramid[name], [0]) for name in ("objectness", "offsets"))
    start = op.constant([0])
    boxes, scores, levels = [], [], []
    for level, length in enumerate(_anchors_per_level(op, pyramid, result.anchors_per_cell)):
        end = op.Add(start, length)
        score = op.Sigmoid(op.rows(objectness, start, end))
        values, index = best(op, score, result.pre_nms_top_n)
        anchors = take(op, op.rows(pyramid["anchors"], start, end), index)
        offset = take(op, op.rows(offsets, start, end), index)
        boxes.append(decode(op, anchors, offset, (1.0, 1.0, 1.0, 1.0), size))
        scores.append(values)
        levels.append(op.Add(op.Mul(index, 0), level))
        start = end
    box, score, group = (op.Concat(*parts, axis=0) for parts in (boxes, scores, levels))
    low, high = op.Split(box, axis=1, num_outputs=2, outputs=2)
    sides = op.ReduceMin(op.Sub(high, low), [1], keepdims=0)
    has_area = op.Greater(sides, 0.0)
    box, score, group = (op.Compress(x, has_area, axis=0) for x in (box, score, group))
    shifted = apart(op, box, op.Unsqueeze(group, [1]), None)
    kept = op.NonMaxSuppression(
        op.Unsqueeze(shifted, [0]),
        op.Unsqueeze(score, [0, 1]),
        op.constant([result.post_nms_top_n]),
        op.constant([result.proposal_iou]),
    )
    return take(op, box, op.column(kept, 2, axis=1))


def _anchors_per_level(op: Builder, pyramid: dict[str, ir.Value], per_cell: int) -> list[ir.Value]:
    """Number of anchors of each level; the fifth has half the cells of ``p5``, rounded up."""
    shapes = [op.Shape(pyramid[name], start=2, end=4) for name in LEVELS]
    shapes.append(op.Div(op.Add(shapes[-1], [1]), [2]))
    return [op.Mul(op.ReduceProd(shape, [0], keepdims=1), [per_cell]) for shape in shapes]


def _select(
    op: Builder, boxes: ir.Value, scores: ir.Value, result: RegionResult
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Detections after NMS within classes; see `select_detections`.

    Every class is an image of a batch for ``NonMaxSuppression``.
    """
    by_class = op.Transpose(boxes, perm=[1, 0, 2])  # (C, R, 4)
    class_scores = op.Transpose(scores, perm=[1, 0])
    (classes,) = op.sides(class_scores, 0)
    numbers = op.Range(0, op.Squeeze(classes), 1)
    confident = op.Unsqueeze(op.Greater(class_scores, float(result.score)), [2])
    shifted = apart(op, by_class, op.Unsqueeze(numbers, [1, 2]), confident)
    kept = op.NonMaxSuppression(
        shifted,
        op.Unsqueeze(class_scores, [1]),
        op.sides(scores, 0)[0],
        op.constant([result.nms_iou]),
        op.constant([result.score]),
    )
    pairs = op.Gather(kept, [0, 2], axis=1)
    values, order = best(op, op.GatherND(class_scores, pairs), result.max_detections)
    pairs = take(op, pairs, order)
    return op.GatherND(by_class, pairs), values, op.column(pairs, 0, axis=1)


def _paste(
    op: Builder, masks: ir.Value, boxes: ir.Value, size: ir.Value, threshold: float
) -> ir.Value:
    """Masks of the whole image; see `paste_masks`.

    Bilinear sampling is separable: two matrix products whose weights are the shares of the rows
    and columns of a mask at each pixel.
    """
    low, high = op.Split(boxes, axis=1, num_outputs=2, outputs=2)
    weights = []
    for axis in (1, 0):  # rows lie along y
        side = op.Squeeze(op.column(size, 1 - axis, axis=0))
        pixels = op.Add(op.Cast(op.Range(0, side, 1), to=FLOAT), 0.5)
        start, end = (op.Unsqueeze(op.column(x, axis, axis=1), [1, 2]) for x in (low, high))
        shifted = op.Sub(op.Reshape(pixels, [1, -1, 1]), start)
        position = op.Sub(op.Mul(op.Div(shifted, op.Sub(end, start)), float(MASK_SIDE)), 0.5)
        cells = op.constant(np.arange(MASK_SIDE, dtype=np.float32))
        distance = op.Abs(op.Sub(position, cells))  # (D, pixels, MASK_SIDE)
        weights.append(op.Relu(op.Sub(1.0, distance)))
    columns = op.Transpose(weights[1], perm=[0, 2, 1])
    pasted = op.MatMul(op.MatMul(weights[0], masks), columns)
    kept: ir.Value = op.GreaterOrEqual(pasted, float(threshold))
    return kept
