"""Cascade Mask R-CNN on InternImage.

Source: Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018 (arXiv 1712.00726), with the constants of
the official InternImage configurations ``cascade_internimage_*_fpn_*_coco`` (mmdet 2.28). Parameter
names are the official ones. The box heads have BatchNorm: on several devices set
``trainer.sync_batchnorm: true``, as the recipes do.
"""

from __future__ import annotations

from collections.abc import Callable

from src.losses.detection import smooth_l1_loss
from src.models.detection.rcnn.anchors import AnchorGenerator
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.cascade_roi_head import STAGE_IOUS, CascadeRoIHead
from src.models.detection.rcnn.mask_head import MaskHead
from src.models.detection.rcnn.roi_head import DetectionLimits, RegionSampler
from src.models.detection.rcnn.rpn import ProposalLimits, RPNHead
from src.models.detection.rcnn.two_stage import TwoStageDetector
from src.models.internimage.backbone import InternImageBackbone
from src.models.necks.fpn import FPN


class CascadeMaskRCNN(TwoStageDetector):
    """Mask R-CNN whose boxes are improved in three stages.

    Args:
        num_classes: Classes without background.
        backbone: Makes the backbone.
        channels: Width of the pyramid and of the convolutions of all heads.
        fc_channels: Width of the fully connected layer of each box head.
        anchor_scale: Square root of an anchor's area in cells of its level.
        train_proposals: Proposals per image in training.
        train_proposals_per_level: Proposals per level before duplicates are dropped, in training.
        test_proposals: Proposals per image in evaluation.
        test_proposals_per_level: Proposals per level before duplicates are dropped, in evaluation.
        rpn_samples: Anchors per image in the loss of the RPN.
        roi_samples: Proposals per image and stage in the losses of the heads.
        score_threshold: Probability that a detection must exceed.
        nms_iou: Boxes of one class that overlap more than this are duplicates.
        max_detections: Detections per image.
        mask_threshold: Probability from which on a pixel belongs to an object.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        channels: int = 256,
        fc_channels: int = 1024,
        anchor_scale: float = 8.0,
        train_proposals: int = 2000,
        train_proposals_per_level: int = 2000,
        test_proposals: int = 1000,
        test_proposals_per_level: int = 1000,
        rpn_samples: int = 256,
        roi_samples: int = 512,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
    ) -> None:
        trunk = backbone()
        super().__init__(
            trunk,
            FPN(trunk.stage_channels, channels),
            RPNHead(
                channels,
                AnchorGenerator(scale=anchor_scale),
                train_limits=ProposalLimits(train_proposals_per_level, train_proposals),
                test_limits=ProposalLimits(test_proposals_per_level, test_proposals),
                box_loss=smooth_l1_loss,
                num_samples=rpn_samples,
                inside_only=True,
            ),
            CascadeRoIHead(
                [
                    BoxHead(num_classes, channels, fc_channels, num_convs=4, num_fcs=1)
                    for _ in STAGE_IOUS
                ],
                [MaskHead(num_classes, channels) for _ in STAGE_IOUS],
                [
                    RegionSampler(num_classes, iou, low_quality=False, number=roi_samples)
                    for iou in STAGE_IOUS
                ],
                DetectionLimits(score_threshold, nms_iou, max_detections, mask_threshold),
            ),
        )
