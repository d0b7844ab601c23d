"""The way of an image through a two-stage detector.

image ``(N, 3, H, W)`` -> backbone ``c2..c5`` -> neck ``p2..p6`` -> RPN: proposals -> RoI head:
boxes, classes and masks. Training compares the last two steps with the objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.models.detection.detector import Detector
from src.models.detection.rcnn.cascade_roi_head import CascadeRoIHead
from src.models.detection.rcnn.roi_head import RoIHead
from src.models.detection.rcnn.rpn import RPNHead
from src.models.internimage.backbone import InternImageBackbone
from src.models.necks.fpn import FPN
from src.types import Detections, DetectionTarget, Size

SIZE_DIVISOR = 32
"""Images are padded to a multiple of this many pixels, the stride of the coarsest stage."""


class TwoStageDetector(Detector):
    """Backbone, neck, proposals, second stage.

    Args:
        backbone: Returns four maps of strides 4, 8, 16, 32.
        neck: Makes them a pyramid of five maps of one width.
        rpn_head: Proposes boxes.
        roi_head: Makes detections of them.
    """

    def __init__(
        self,
        backbone: InternImageBackbone,
        neck: FPN,
        rpn_head: RPNHead,
        roi_head: RoIHead | CascadeRoIHead,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.depths = backbone.depths

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> dict[str, Tensor]:
        """Losses by name; see `Detector.forward`."""
        pyramid = self.neck(self.backbone(image))
        logits, offsets = self.rpn_head(pyramid)
        anchors = self._anchors(pyramid, offsets[0])
        rpn_losses = self.rpn_head.losses(
            logits,
            offsets,
            anchors,
            sizes,
            [self._own_anchors(pyramid, size) for size in sizes],
            [t["boxes"].to(offsets[0]) for t in targets],
        )
        proposals = self.rpn_head.propose(
            logits, offsets, anchors, sizes, self.rpn_head.train_limits
        )
        boxes = [p.boxes for p in proposals]
        return {**rpn_losses, **self.roi_head.losses(pyramid, boxes, targets, sizes)}

    @torch.no_grad()
    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `Detector.forward`."""
        pyramid = self.neck(self.backbone(image))
        logits, offsets = self.rpn_head(pyramid)
        anchors = self._anchors(pyramid, offsets[0])
        proposals = self.rpn_head.propose(
            logits, offsets, anchors, sizes, self.rpn_head.test_limits
        )
        boxes = [p.boxes for p in proposals]
        return self.roi_head.detect(pyramid, boxes, sizes, original_sizes or sizes)

    def _anchors(self, pyramid: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        return self.rpn_head.anchors(_cells(pyramid), like)

    def _own_anchors(self, pyramid: Sequence[Tensor], size: Size) -> Tensor:
        """Anchors in an image's own padding to a multiple of 32, bool, all levels together."""
        height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
        flags = self.rpn_head.anchors.valid(_cells(pyramid), (height, width), pyramid[0].device)
        return torch.cat(flags)


def _cells(pyramid: Sequence[Tensor]) -> list[Size]:
    return [(level.shape[-2], level.shape[-1]) for level in pyramid]
