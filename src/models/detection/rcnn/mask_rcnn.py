"""Mask R-CNN on InternImage.

Source: He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870), with the constants of the official
InternImage configurations ``mask_rcnn_internimage_*_fpn_*_coco`` (mmdet 2.28). Parameter names are
the official ones; arguments ``rpn_*`` and ``box_*`` are named as in torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from src.losses.detection import l1_loss
from src.models.detection.rcnn.anchors import AnchorGenerator
from src.models.detection.rcnn.assigner import RegionSampler
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.mask_head import MaskHead
from src.models.detection.rcnn.postprocess import DetectionLimits
from src.models.detection.rcnn.roi_head import RoIHead, StandardRoIHead
from src.models.detection.rcnn.rpn import ProposalLimits, RPNHead
from src.models.detection.rcnn.two_stage import TwoStageDetector
from src.models.internimage.backbone import InternImageBackbone
from src.models.necks.fpn import FPN


class MaskRCNN(TwoStageDetector):
    """Mask R-CNN with a feature pyramid.

    A variant overrides `make_rpn_head` and `make_roi_head`.

    Args:
        num_classes: Classes without background.
        backbone: Makes the backbone.
        channels: Width of the feature pyramid and of the convolutions of all heads.
        fc_channels: Width of the fully connected layers of the box heads.
        anchor_scale: Square root of an anchor's area in cells of its level.
        rpn_pre_nms_top_n_train: Boxes per level before NMS of the proposals, in training.
        rpn_pre_nms_top_n_test: Boxes per level before NMS of the proposals, in evaluation.
        rpn_post_nms_top_n_train: Proposals per image, in training.
        rpn_post_nms_top_n_test: Proposals per image, in evaluation.
        rpn_batch_size_per_image: Anchors per image in the losses of the RPN.
        box_batch_size_per_image: Proposals per image and stage in the losses of the heads.
        score_threshold: Minimum score of a detection, exclusive.
        nms_iou: IoU above which NMS removes the lower-scoring box of a class.
        max_detections: Maximum number of detections per image.
        mask_threshold: Minimum probability of the pixels of a mask.
        fpn_norm: LayerNorm after every convolution of the feature pyramid, as in FlashInternImage.
    """

    former_arguments: ClassVar[dict[str, str]] = {
        "train_proposals_per_level": "rpn_pre_nms_top_n_train",
        "test_proposals_per_level": "rpn_pre_nms_top_n_test",
        "train_proposals": "rpn_post_nms_top_n_train",
        "test_proposals": "rpn_post_nms_top_n_test",
        "rpn_samples": "rpn_batch_size_per_image",
        "roi_samples": "box_batch_size_per_image",
    }
    """Names of arguments in earlier versions, accepted in configurations and checkpoints."""

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        channels: int = 256,
        fc_channels: int = 1024,
        anchor_scale: float = 8.0,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 1000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_batch_size_per_image: int = 256,
        box_batch_size_per_image: int = 512,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
        fpn_norm: bool = False,
    ) -> None:
        network = backbone()
        limits = DetectionLimits(score_threshold, nms_iou, max_detections, mask_threshold)
        super().__init__(
            network,
            FPN(network.stage_channels, channels, norm=fpn_norm),
            self.make_rpn_head(
                channels,
                anchors=AnchorGenerator(scale=anchor_scale),
                train_limits=ProposalLimits(rpn_pre_nms_top_n_train, rpn_post_nms_top_n_train),
                test_limits=ProposalLimits(rpn_pre_nms_top_n_test, rpn_post_nms_top_n_test),
                batch_size_per_image=rpn_batch_size_per_image,
            ),
            self.make_roi_head(
                num_classes, channels, fc_channels, box_batch_size_per_image, limits
            ),
        )

    @staticmethod
    def make_rpn_head(channels: int, **settings: Any) -> RPNHead:
        """Make the RPN; ``settings`` are arguments of `RPNHead`."""
        return RPNHead(channels, box_loss=l1_loss, **settings)

    @staticmethod
    def make_roi_head(
        num_classes: int,
        channels: int,
        fc_channels: int,
        batch_size_per_image: int,
        limits: DetectionLimits,
    ) -> RoIHead:
        """Make the second stage.

        Args:
            num_classes: Classes without background.
            channels: Width of the feature pyramid.
            fc_channels: Width of the fully connected layers.
            batch_size_per_image: Proposals per image in the losses.
            limits: Score and NMS thresholds, and the number of detections.
        """
        return StandardRoIHead(
            BoxHead(num_classes, channels, fc_channels),
            MaskHead(num_classes, channels),
            RegionSampler(num_classes, 0.5, low_quality=True, number=batch_size_per_image),
            limits,
        )
