"""Exported graphs of two-stage detectors: three kinds of files.

The application sorts boxes and applies non-maximum suppression between them, see
``docs/export.md``.

- ``backbone``: images to feature maps, and the outputs of the RPN with their anchors;
- ``boxes``, or ``boxes_1``, ``boxes_2``, ... with several stages: class logits and box offsets of
  given boxes;
- ``masks``: mask probabilities of given boxes and classes, if the detector has masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import roi_align

from src.models.detection.rcnn.box_head import BOX_ROI_SIDE, BoxHead
from src.models.detection.rcnn.mask_head import MASK_ROI_SIDE, MaskHead, masks_of_class
from src.models.detection.rcnn.roi_align import STRIDES, boxes_with_image, pyramid_level
from src.models.detection.rcnn.roi_head import RoIHead
from src.models.detection.rcnn.rpn import NMS_IOU, SIZE_DIVISOR, RPNHead
from src.models.graphs import Graph, RegionResult, image_graph, multiples_of_32

LEVELS = {f"p{i}": f"feature map of stride {stride}" for i, stride in enumerate(STRIDES, 2)}
_MEANINGS = {
    **LEVELS,
    "rois": "index of the image in the batch, x1, y1, x2, y2",
    "labels": "class of each box",
    "logits": "scores before the softmax, background last",
    "offsets": "box offsets (dx, dy, dw, dh) of each class, relative to the given box",
    "masks": "mask probabilities of the given classes in their boxes",
}
_MASKS_COMPARED = 100


class ExportedRPN(nn.Module):
    """Backbone, neck and RPN."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, rpn_head: RPNHead) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn_head = backbone, neck, rpn_head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps and predictions at every anchor of ``(N, 3, H, W)``.

        Returns:
            ``p2..p5`` of shape ``(N, C, h, w)``, then for the anchors of all levels, finest first:
            objectness logits ``(N, A)``, offsets ``(N, A, 4)`` and the anchors ``(A, 4)``.
        """
        pyramid = self.neck(self.backbone(image))
        rpn = self.rpn_head.predict(pyramid)
        predictions = torch.cat(rpn.logits, dim=1), torch.cat(rpn.offsets, dim=1)
        return (*pyramid[: len(LEVELS)], *predictions, torch.cat(rpn.anchors))


class ExportedBoxHead(nn.Module):
    """A box head on given boxes."""

    def __init__(self, head: BoxHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits ``(R, classes + 1)``, background last, and offsets ``(R, classes, 4)``.

        Args:
            p2: Feature map of stride 4; the next ones of 8, 16 and 32.
            p3: See ``p2``.
            p4: See ``p2``.
            p5: See ``p2``.
            rois: Index of the image in the batch and box ``x1, y1, x2, y2``, ``(R, 5)``.
        """
        logits, offsets = self.head(align((p2, p3, p4, p5), rois, BOX_ROI_SIDE))
        return logits, offsets


class ExportedMaskHeads(nn.Module):
    """Mask heads on given boxes of known classes, averaged."""

    def __init__(self, heads: Sequence[MaskHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor
    ) -> Tensor:
        """Probabilities ``(R, 28, 28)`` of the classes ``labels``, int64 ``(R,)``."""
        features = align((p2, p3, p4, p5), rois, MASK_ROI_SIDE)
        masks = [masks_of_class(head(features), labels).sigmoid() for head in self.heads]
        return torch.stack(masks).mean(dim=0)


def align(pyramid: tuple[Tensor, ...], rois: Tensor, side: int) -> Tensor:
    """Features ``(R, C, side, side)``, as `align_on_pyramid`, without sizes that depend on values.

    All boxes are pooled from every level, but those that belong to another level are shrunk to a
    point there, from which adaptive RoIAlign takes no samples. That part is 0 in ONNX Runtime and
    NaN in OpenVINO, so parts are selected instead of added.
    """
    level = pyramid_level(rois)
    features: Tensor | None = None
    for i, stride in enumerate(STRIDES):
        here = level == i
        boxes = torch.cat([rois[:, :1], rois[:, 1:] * here[:, None]], dim=1)
        part = roi_align(pyramid[i], boxes, (side, side), 1 / stride, aligned=True)
        features = (
            part if features is None else torch.where(here[:, None, None, None], part, features)
        )
    assert features is not None
    return features


def two_stage_graphs(
    backbone: nn.Module, neck: nn.Module, rpn_head: RPNHead, roi_head: RoIHead
) -> list[Graph]:
    """Graphs of a two-stage detector from its parts."""
    outputs = {
        **LEVELS,
        "objectness": "RPN scores of all anchors before the sigmoid, finest level first",
        "offsets": "box offsets (dx, dy, dw, dh), relative to the anchors",
        "anchors": "x1, y1, x2, y2 in pixels of the image",
    }
    rpn = ExportedRPN(backbone, neck, rpn_head)
    proposals, limits = rpn_head.test_limits, roi_head.limits
    result = RegionResult(
        pre_nms_top_n=proposals.pre_nms_top_n,
        post_nms_top_n=proposals.post_nms_top_n,
        proposal_iou=NMS_IOU,
        stds=tuple(coder.stds for coder in roi_head.coders),
        score=limits.score,
        nms_iou=limits.nms_iou,
        max_detections=limits.per_image,
        mask_threshold=limits.mask if roi_head.mask_heads else None,
        divisor=SIZE_DIVISOR,
        anchors_per_cell=rpn_head.anchors.num_per_cell,
    )
    graphs = [image_graph("backbone", rpn, outputs, multiples_of_32(), result=result)]
    width, box_heads = rpn_head.rpn_conv.in_channels, roi_head.box_heads
    for stage, head in enumerate(box_heads, 1):
        name = "boxes" if len(box_heads) == 1 else f"boxes_{stage}"
        graphs.append(_region_graph(name, ExportedBoxHead(head), width, ("logits", "offsets")))
    if roi_head.mask_heads:
        masks = ExportedMaskHeads(roi_head.mask_heads)
        graphs.append(_region_graph("masks", masks, width, ("masks",), labels=True))
    return graphs


def _region_graph(
    name: str, module: nn.Module, width: int, outputs: tuple[str, ...], *, labels: bool = False
) -> Graph:
    """Graph whose inputs are feature maps and regions, and classes of the regions if ``labels``."""
    inputs = {
        level: torch.zeros(2, width, 64 // 2**i, 48 // 2**i) for i, level in enumerate(LEVELS)
    }
    inputs["rois"] = torch.tensor([[0.0, 4, 4, 40, 60], [1, 0, 0, 90, 90], [1, 9, 9, 200, 150]])
    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    dynamic: dict[str, Any] = {**dict.fromkeys(LEVELS, sides), "rois": {0: Dim.DYNAMIC}}
    if labels:
        inputs["labels"] = torch.zeros(3, dtype=torch.int64)
        dynamic["labels"] = {0: Dim.DYNAMIC}
    meanings = {key: _MEANINGS[key] for key in (*inputs, *outputs)}
    return Graph(name, module.eval(), inputs, dynamic, outputs, meanings)


def region_inputs(
    pyramid: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int, *, masks: bool
) -> Iterator[dict[str, Tensor]]:
    """Inputs of the graphs ``boxes`` and ``masks``.

    Args:
        pyramid: Feature maps ``p2..p6``.
        boxes: Boxes of each image, ``(N, 4)``.
        num_classes: Classes to take masks of, one box after the other.
        masks: Whether the detector has masks.
    """
    levels, rois = dict(zip(LEVELS, pyramid, strict=False)), boxes_with_image(boxes)
    yield {**levels, "rois": rois}
    if masks:
        some = rois[:_MASKS_COMPARED]
        yield {**levels, "rois": some, "labels": torch.arange(len(some)) % num_classes}
