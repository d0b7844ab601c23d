"""Second stage of Cascade R-CNN: three box heads, each refining the boxes of the one before.

Source: Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018 (arXiv 1712.00726); details of the official
InternImage detectors with masks: class-specific offsets, GIoU loss on decoded boxes, one mask head
per stage, class logits averaged over the stages before the softmax.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from src.losses.detection import giou_loss, smooth_l1_loss
from src.models.detection.rcnn.assigner import RegionSampler
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.mask_head import MaskHead
from src.models.detection.rcnn.postprocess import DetectionLimits
from src.models.detection.rcnn.roi_head import RoIHead

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
STAGE_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)
GIOU_WEIGHT = 10.0


class CascadeRoIHead(RoIHead):
    """Box and mask heads of three stages; names of losses begin with ``s0.``, ``s1.``, ``s2.``.

    Args:
        bbox_heads: One box head per stage.
        mask_heads: One mask head per stage; None predicts boxes only.
        regions: Sampler of proposals for training, one per stage.
        limits: Which boxes are detections.
    """

    def __init__(
        self,
        bbox_heads: Iterable[BoxHead],
        mask_heads: Iterable[MaskHead] | None,
        regions: Iterable[RegionSampler],
        limits: DetectionLimits,
    ) -> None:
        masks = None if mask_heads is None else nn.ModuleList(mask_heads)
        super().__init__(nn.ModuleList(bbox_heads), masks, regions, STAGE_STDS, limits)

    def loss_prefix(self, stage: int) -> str:
        """See `RoIHead.loss_prefix`."""
        return f"s{stage}."

    def loss_weight(self, stage: int) -> float:
        """See `RoIHead.loss_weight`."""
        return STAGE_WEIGHTS[stage]

    def box_loss(
        self, stage: int, boxes: Tensor, offsets: Tensor, gt_boxes: Tensor, number: int
    ) -> Tensor:
        """See `RoIHead.box_loss`."""
        decoded = self.coders[stage].decode(boxes, offsets)
        return GIOU_WEIGHT * giou_loss(decoded, gt_boxes, number)


class CascadeBoxHead(CascadeRoIHead):
    """Box heads of three stages without masks, with a smooth L1 loss between box offsets.

    Args:
        bbox_heads: One box head per stage.
        regions: Sampler of proposals for training, one per stage.
        limits: Which boxes are detections.
    """

    def __init__(
        self,
        bbox_heads: Iterable[BoxHead],
        regions: Iterable[RegionSampler],
        limits: DetectionLimits,
    ) -> None:
        super().__init__(bbox_heads, None, regions, limits)

    def box_loss(
        self, stage: int, boxes: Tensor, offsets: Tensor, gt_boxes: Tensor, number: int
    ) -> Tensor:
        """See `RoIHead.box_loss`."""
        return smooth_l1_loss(offsets, self.coders[stage].encode(boxes, gt_boxes), number, beta=1.0)
