"""Forward pass of a two-stage detector.

image ``(N, 3, H, W)`` -> backbone ``c2..c5`` -> neck ``p2..p6`` -> RPN: proposals -> RoI head:
boxes, classes and masks. In training the RPN and the RoI head compare with the ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from src.models.detection.detector import Detector, TrainingOutput
from src.models.detection.rcnn.graphs import region_inputs, two_stage_graphs
from src.models.detection.rcnn.roi_head import RoIHead
from src.models.detection.rcnn.rpn import Proposals, RPNHead
from src.models.graphs import Graph
from src.models.internimage.backbone import InternImageBackbone
from src.models.necks.fpn import FPN
from src.types import Detections, DetectionTarget, Size


class TwoStageDetector(Detector):
    """Backbone, neck, region proposal network and RoI head.

    Args:
        backbone: Returns four feature maps of strides 4, 8, 16, 32.
        neck: Turns them into a pyramid of five feature maps of one width.
        rpn_head: Proposes boxes.
        roi_head: Classifies and refines the proposals.
    """

    not_in_dense_outputs: ClassVar[str] = ""

    def __init__(
        self,
        backbone: InternImageBackbone,
        neck: FPN,
        rpn_head: RPNHead,
        roi_head: RoIHead,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.depths = backbone.depths

    def extract_features(self, image: Tensor) -> list[Tensor]:
        """Feature maps ``p2..p6``; see `Detector.extract_features`."""
        pyramid: list[Tensor] = self.neck(self.backbone(image))
        return pyramid

    def propose(self, pyramid: Sequence[Tensor], sizes: Sequence[Size]) -> list[Proposals]:
        """Proposals of evaluation.

        Args:
            pyramid: Result of `extract_features`.
            sizes: Height and width of each image without padding.

        Returns:
            Boxes and scores of each image. What the RPN predicts at each anchor is in the result of
            ``rpn_head.predict(pyramid)``.
        """
        return self.rpn_head.propose(
            self.rpn_head.predict(pyramid), sizes, self.rpn_head.test_limits
        )

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> TrainingOutput:
        """Losses and metrics by name; see `Detector.forward`."""
        pyramid = self.extract_features(image)
        rpn = self.rpn_head.predict(pyramid)
        gt_boxes = [t["boxes"].to(rpn.offsets[0]) for t in targets]
        rpn_losses = self.rpn_head.losses(rpn, sizes, gt_boxes)
        proposals = self.rpn_head.propose(rpn, sizes, self.rpn_head.train_limits)
        boxes = [p.boxes for p in proposals]
        roi = self.roi_head.losses(pyramid, boxes, targets, sizes)
        return TrainingOutput(rpn_losses | roi.losses, roi.metrics)

    @torch.no_grad()
    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `Detector.forward`."""
        pyramid = self.extract_features(image)
        boxes = [p.boxes for p in self.propose(pyramid, sizes)]
        return self.roi_head.detect(pyramid, boxes, sizes, original_sizes or sizes)

    def dense_outputs(self, image: Tensor) -> list[Tensor]:
        """RPN and all heads, the latter on the largest number of regions; see `Detector`."""
        pyramid = self.extract_features(image)
        logits, offsets = self.rpn_head(pyramid)
        return [*logits, *offsets, *self.roi_head.dense_outputs(pyramid[0], len(image))]

    def export_graphs(self) -> list[Graph]:
        """Files for the RPN, each box head and the mask heads; see ``graphs.py``."""
        return two_stage_graphs(self.backbone, self.neck, self.rpn_head, self.roi_head)

    @torch.no_grad()
    def export_inputs(self, image: Tensor, sizes: Sequence[Size]) -> Iterator[dict[str, Tensor]]:
        """Images, and their proposals as regions; see `Detector.export_inputs`."""
        yield {"image": image}
        pyramid = self.extract_features(image)
        boxes = [p.boxes for p in self.propose(pyramid, sizes)]
        number, masks = self.roi_head.box_heads[0].num_classes, bool(self.roi_head.mask_heads)
        yield from region_inputs(pyramid, boxes, number, masks=masks)
