"""Graphs that a network exports: modules whose inputs and outputs are tensors.

A network that can be exported has a method ``export_graphs()``, which returns one `Graph` for each
file. ``src.export`` writes and compares them; it knows the kinds of results below, not networks. A
network whose graphs have other inputs than images also has ``export_inputs()``, see
`Detector.export_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from src.types import Detections, Size

SMALLEST_SIDE = 33
"""Up to 32 pixels the last feature map has a single cell, which tracing takes for a fixed size."""


@dataclass(frozen=True)
class Graph:
    """One file to write.

    Attributes:
        name: Name of the file without its suffix.
        module: The exported module, in evaluation mode.
        inputs: Example inputs by name; their values do not matter.
        dynamic: Dynamic axes of the inputs, as `torch.export.export` takes them.
        outputs: Names of the outputs.
        meanings: Descriptions of inputs and outputs, for the model card.
        integer_outputs: Integer outputs, each with the unit of its mismatch rate, such as
            ``pixels``: the fraction of values that differ, which does not fail a check.
        selections: Outputs with selected indices, which may differ where scores nearly tie, each
            with the output that contains the scores. The module also accepts a selection as an
            argument.
        result: What the first graph of a network, together with the others, leads to.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, Any]
    outputs: tuple[str, ...]
    meanings: Mapping[str, str] = field(default_factory=dict)
    integer_outputs: Mapping[str, str] = field(default_factory=dict)
    selections: Mapping[str, str] = field(default_factory=dict)
    result: Result | None = None


@dataclass(frozen=True)
class ClassResult:
    """Result of a classifier: the probability of every class."""


@dataclass(frozen=True)
class LabelMapResult:
    """Result of a segmentor: the best class of every pixel and its probability."""


@dataclass(frozen=True)
class QueryResult:
    """Result of DINO: the best pairs of query and class.

    Attributes:
        max_detections: Number of detections of an image.
        best_pairs: Detections of one image in PyTorch, see `DINOHead.best_pairs`.
    """

    max_detections: int
    best_pairs: Callable[[Tensor, Tensor, Size, Size], Detections]


@dataclass(frozen=True)
class RegionResult:
    """Result of a two-stage detector: detections, with masks or without.

    Attributes:
        pre_nms_top_n: Boxes per level before NMS of the proposals.
        post_nms_top_n: Proposals of an image.
        proposal_iou: IoU above which NMS removes a proposal.
        stds: Scale of the box offsets of each stage, see `BoxCoder`.
        score: Probability that a detection must exceed.
        nms_iou: IoU above which NMS removes the lower-scoring box of a class.
        max_detections: Number of detections of an image.
        mask_threshold: Minimum probability of the pixels of a mask; None without masks.
        divisor: Images are padded to a multiple of this many pixels.
        anchors_per_cell: Number of anchors of a cell of a feature map.
    """

    pre_nms_top_n: int
    post_nms_top_n: int
    proposal_iou: float
    stds: tuple[tuple[float, ...], ...]
    score: float
    nms_iou: float
    max_detections: int
    mask_threshold: float | None
    divisor: int
    anchors_per_cell: int


Result = ClassResult | LabelMapResult | QueryResult | RegionResult
"""What a network predicts in the end; `Graph.result` of its first graph."""


def image_graph(
    name: str,
    module: nn.Module,
    outputs: Mapping[str, str],
    sides: Mapping[int, Any],
    *,
    size: Size = (96, 128),
    integer_outputs: Mapping[str, str] | None = None,
    selections: Mapping[str, str] | None = None,
    result: Result | None = None,
) -> Graph:
    """Graph whose only input is ``image``, ``(N, 3, H, W)``.

    Args:
        name: See `Graph`.
        module: Called with the images; put into evaluation mode.
        outputs: Names of the outputs in order, each with its meaning.
        sides: Dynamic axes of the images: `free_sides` or `multiples_of_32`.
        size: Height and width of the example.
        integer_outputs: See `Graph`.
        selections: See `Graph`.
        result: See `Graph`.
    """
    return Graph(
        name,
        module.eval(),
        {"image": torch.zeros(2, 3, *size)},
        {"image": dict(sides)},
        tuple(outputs),
        {"image": "prepared RGB images, float32", **outputs},
        integer_outputs or {},
        selections or {},
        result,
    )


def free_sides(smallest: int = SMALLEST_SIDE) -> dict[int, Any]:
    """Free batch, height and width; sides have at least ``smallest`` pixels."""
    return {0: Dim("batch", min=1), 2: Dim("height", min=smallest), 3: Dim("width", min=smallest)}


def multiples_of_32() -> dict[int, Any]:
    """Free batch, height and width; sides are multiples of 32 from 64 on."""
    return {0: Dim("batch", min=1), 2: 32 * Dim("rows", min=2), 3: 32 * Dim("columns", min=2)}
