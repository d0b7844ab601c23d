"""What is exported: plain modules with tensors in and tensors out, batch and sizes free.

Classifier: ``image -> logits, probabilities``. Segmentor: ``image -> logits, label_map``, both at
the size of the image.

DINO: ``image -> logits, boxes`` of all queries, ``proposals, proposal_scores``.

Other detectors: three files, because what lies between them (sorting, non-maximum suppression) is
the runtime's own affair. ``trunk``: image to pyramid and the outputs of the RPN with their anchors;
``boxes``: class logits and box offsets of given boxes, one file per stage of a cascade; ``masks``:
mask probabilities of given boxes and classes. docs/export.md tells how they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import roi_align

from src.errors import UserError
from src.models.detection import CBDINO, DINO, CascadeMaskRCNN, MaskRCNN, TwoStageDetector
from src.models.detection.dino.padding import no_padding
from src.models.detection.rcnn import box_head as boxes_
from src.models.detection.rcnn import mask_head as masks_
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.mask_head import MaskHead, masks_of_class
from src.models.detection.rcnn.roi_align import STRIDES, pyramid_level
from src.models.internimage.classifier import InternImage
from src.models.segmentation import Mask2Former, Segmentor

LEVELS = ("p2", "p3", "p4", "p5")
SMALLEST_SIDE = 33
"""Up to 32 pixels the last map has a single cell, which tracing would take for a fixed size."""
SMALLEST_SIDE_DINO = 65
"""The last map of DINO is half as large."""


@dataclass(frozen=True)
class Graph:
    """One file to write.

    Attributes:
        name: Name of the file without its ending.
        module: What it computes, in evaluation mode.
        inputs: Example inputs by name; their values do not matter.
        dynamic: Free axes of the inputs, as `torch.export.export` takes them.
        outputs: Names of the outputs.
        choices: Outputs that are a choice between numbers which may be nearly equal, each with the
            output that holds these numbers. The module takes a choice as an argument, too.
        meanings: What outputs mean where it is special to the graph.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, Any]
    outputs: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)


def graphs_of(network: nn.Module) -> list[Graph]:
    """What to export of a network.

    Args:
        network: A network of this project with its weights; put into evaluation mode.

    Raises:
        UserError: If the network cannot be exported.
    """
    network = network.eval().float().cpu()
    if isinstance(network, InternImage):
        return [_whole("model", Classifier(network), ("logits", "probabilities"), _sides(network))]
    if isinstance(network, Segmentor):
        return [_segmentor(network)]
    if isinstance(network, (MaskRCNN, CascadeMaskRCNN)):
        return _detector(network)
    if isinstance(network, (DINO, CBDINO)):
        return [_set_detector(network)]
    raise UserError(
        "Export accepts InternImage, Segmentor (UPerNet), Mask2Former, MaskRCNN, CascadeMaskRCNN, "
        f"DINO and CBDINO, got {type(network).__name__}."
    )


class Classifier(nn.Module):
    """Logits and probabilities, both ``(N, classes)``."""

    def __init__(self, network: InternImage) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify ``(N, 3, H, W)``."""
        logits = self.network(image)
        return logits, logits.softmax(dim=1)


class PixelClassifier(nn.Module):
    """Logits ``(N, classes, H, W)`` and the best class of every pixel, int64 ``(N, H, W)``."""

    def __init__(self, network: Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment ``(N, 3, H, W)``."""
        logits = self.network(image)["out"]
        return logits, logits.argmax(dim=1)


class SetDetector(nn.Module):
    """What DINO finds in images that fill the batch, before the best are taken."""

    def __init__(self, network: DINO | CBDINO) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, proposals: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect in ``(N, 3, H, W)``.

        Args:
            image: Prepared images.
            proposals: Pixels that the queries start from, instead of the best ones.

        Returns:
            Logits of the last decoder layer ``(N, Q, classes)``; boxes ``(N, Q, 4)``, centre and
            size in [0, 1]; the pixels of all maps that the queries start from, int64 ``(N, Q)``,
            and the logits that they are chosen by, ``(N, Q)``, falling.
        """
        head = self.network.bbox_head
        transformer = head.transformer
        maps = self.network.neck(self.network.maps_for_detection(image))
        padding = no_padding(maps)
        memory = transformer.encode(maps, padding)
        chosen = transformer.propose(
            memory, padding, head.cls_branches[-1], head.reg_branches[-1], proposals
        )
        found = head.predict(
            *transformer.decode(memory, padding, chosen, None, head.reg_branches), chosen
        )
        return found.logits[-1], found.boxes[-1], chosen.index, chosen.logits.amax(-1)


class Trunk(nn.Module):
    """Backbone, neck and RPN of a detector."""

    def __init__(self, network: TwoStageDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Pyramid and proposals of ``(N, 3, H, W)``.

        Returns:
            ``p2..p5`` of shape ``(N, C, h, w)``, then for the anchors of all levels, finest first:
            objectness logits ``(N, A)``, offsets ``(N, A, 4)`` and the anchors ``(A, 4)``.
        """
        pyramid = self.network.neck(self.network.backbone(image))
        logits, offsets = self.network.rpn_head(pyramid)
        cells = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        anchors = self.network.rpn_head.anchors(cells, offsets[0])
        return (
            *pyramid[: len(LEVELS)],
            torch.cat(logits, dim=1),
            torch.cat(offsets, dim=1),
            torch.cat(anchors),
        )


class Boxes(nn.Module):
    """One box head on given boxes."""

    def __init__(self, head: BoxHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits ``(R, classes + 1)``, background last, and offsets ``(R, classes, 4)``.

        Args:
            p2: Map of stride 4; the next ones of 8, 16 and 32.
            p3: See ``p2``.
            p4: See ``p2``.
            p5: See ``p2``.
            rois: Number of the image in the batch and box ``x1, y1, x2, y2``, ``(R, 5)``.
        """
        logits, offsets = self.head(align((p2, p3, p4, p5), rois, boxes_.ROI_SIDE))
        return logits, offsets


class Masks(nn.Module):
    """The mask heads on given boxes of known classes, averaged."""

    def __init__(self, heads: list[MaskHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor
    ) -> Tensor:
        """Probabilities ``(R, 28, 28)`` of the classes ``labels``, int64 ``(R,)``."""
        features = align((p2, p3, p4, p5), rois, masks_.ROI_SIDE)
        masks = [masks_of_class(head(features), labels).sigmoid() for head in self.heads]
        return torch.stack(masks).mean(dim=0)


def align(pyramid: tuple[Tensor, ...], rois: Tensor, side: int) -> Tensor:
    """Features ``(R, C, side, side)``, as `align_on_pyramid`, without sizes that depend on values.

    Every level is asked for all boxes, but those that belong to another level are shrunk to a
    point there, from which adaptive RoIAlign takes no samples: their part is exactly 0.
    """
    level = pyramid_level(rois)
    parts = []
    for i, stride in enumerate(STRIDES):
        here = (level == i).to(rois.dtype)[:, None]
        boxes = torch.cat([rois[:, :1], rois[:, 1:] * here], dim=1)
        parts.append(roi_align(pyramid[i], boxes, (side, side), 1 / stride, aligned=True))
    return torch.stack(parts).sum(dim=0)


def _sides(network: nn.Module) -> dict[int, Any]:
    """Free axes of an image; H and G need sides that are multiples of 32."""
    if getattr(network, "use_clip_projector", False):
        return _multiples_of_32()
    return _from(SMALLEST_SIDE)


def _from(least: int) -> dict[int, Any]:
    return {0: Dim("batch", min=1), 2: Dim("height", min=least), 3: Dim("width", min=least)}


def _multiples_of_32() -> dict[int, Any]:
    return {0: Dim("batch", min=1), 2: 32 * Dim("rows", min=2), 3: 32 * Dim("columns", min=2)}


def _whole(
    name: str, module: nn.Module, outputs: tuple[str, ...], sides: Mapping[int, Any]
) -> Graph:
    image = torch.zeros(2, 3, 96, 128)
    dynamic = {"image": dict(sides)}
    return Graph(name, module.eval(), {"image": image}, dynamic, outputs)


def _segmentor(network: Segmentor) -> Graph:
    outputs = ("logits", "label_map")
    graph = _whole("model", PixelClassifier(network), outputs, _sides(network))
    if not isinstance(network, Mask2Former):
        return graph
    meaning = "scores per pixel: masks times class probabilities, summed over the queries"
    return replace(graph, meanings={"logits": meaning})


def _set_detector(network: DINO | CBDINO) -> Graph:
    return Graph(
        "model",
        SetDetector(network).eval(),
        {"image": torch.zeros(2, 3, 160, 224)},
        {"image": _from(SMALLEST_SIDE_DINO)},
        ("logits", "boxes", "proposals", "proposal_scores"),
        # Two pixels whose scores differ by less than rounding may change places, and with them the
        # learned content that their queries start from.
        choices={"proposals": "proposal_scores"},
        meanings={"logits": "scores of each query before the sigmoid, (N, Q, classes)"},
    )


def _detector(network: MaskRCNN | CascadeMaskRCNN) -> list[Graph]:
    names = (*LEVELS, "objectness", "offsets", "anchors")
    trunk = _whole("trunk", Trunk(network), names, _multiples_of_32())
    roi_head = network.roi_head
    box_heads: Any = roi_head.bbox_head
    mask_heads: Any = roi_head.mask_head
    cascade = isinstance(network, CascadeMaskRCNN)
    box_heads = list(box_heads) if cascade else [box_heads]
    mask_heads = list(mask_heads) if cascade else [mask_heads]
    neck: Any = network.neck
    width = int(neck.fpn_convs[0].conv.out_channels)
    inputs = {name: torch.zeros(2, width, 64 // 2**i, 48 // 2**i) for i, name in enumerate(LEVELS)}
    inputs["rois"] = torch.tensor([[0.0, 4, 4, 40, 60], [1, 0, 0, 90, 90], [1, 9, 9, 200, 150]])
    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    free: dict[str, Any] = dict.fromkeys(LEVELS, sides)
    free["rois"] = {0: Dim.DYNAMIC}
    graphs = [trunk]
    for stage, head in enumerate(box_heads, 1):
        name = f"boxes_{stage}" if cascade else "boxes"
        outputs = ("logits", "offsets")
        graphs.append(Graph(name, Boxes(head).eval(), inputs, free, outputs))
    graphs.append(
        Graph(
            "masks",
            Masks(mask_heads).eval(),
            {**inputs, "labels": torch.zeros(3, dtype=torch.int64)},
            {**free, "labels": {0: Dim.DYNAMIC}},
            ("masks",),
        )
    )
    return graphs
