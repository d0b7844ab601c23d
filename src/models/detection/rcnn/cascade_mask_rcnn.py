"""Cascade Mask R-CNN on InternImage.

Source: Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018 (arXiv 1712.00726), with the constants of
the official InternImage configurations ``cascade_internimage_*_fpn_*_coco`` (mmdet 2.28). Parameter
names are the official ones. The box heads have BatchNorm: on several devices set
``trainer.sync_batchnorm: true``, as the recipes do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.losses.detection import smooth_l1_loss
from src.models.detection.rcnn.assigner import RegionSampler
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.cascade_roi_head import STAGE_IOUS, CascadeRoIHead
from src.models.detection.rcnn.mask_head import MaskHead
from src.models.detection.rcnn.mask_rcnn import MaskRCNN
from src.models.detection.rcnn.postprocess import DetectionLimits
from src.models.detection.rcnn.roi_head import RoIHead
from src.models.detection.rcnn.rpn import RPNHead
from src.models.internimage.backbone import InternImageBackbone


class CascadeMaskRCNN(MaskRCNN):
    """Mask R-CNN whose boxes are refined in three stages.

    Args:
        num_classes: See `MaskRCNN`, as the other arguments.
        backbone: Makes the backbone.
        rpn_post_nms_top_n_train: Proposals per image, in training.
        kwargs: Further arguments of `MaskRCNN`.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        rpn_post_nms_top_n_train: int = 2000,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            backbone,
            rpn_post_nms_top_n_train=rpn_post_nms_top_n_train,
            **kwargs,
        )

    @staticmethod
    def make_rpn_head(channels: int, **settings: Any) -> RPNHead:
        """See `MaskRCNN.make_rpn_head`."""
        return RPNHead(channels, box_loss=smooth_l1_loss, inside_only=True, **settings)

    @staticmethod
    def make_roi_head(
        num_classes: int,
        channels: int,
        fc_channels: int,
        batch_size_per_image: int,
        limits: DetectionLimits,
    ) -> RoIHead:
        """See `MaskRCNN.make_roi_head`."""
        return CascadeRoIHead(
            [
                BoxHead(num_classes, channels, fc_channels, num_convs=4, num_fcs=1)
                for _ in STAGE_IOUS
            ],
            [MaskHead(num_classes, channels) for _ in STAGE_IOUS],
            [
                RegionSampler(num_classes, iou, low_quality=False, number=batch_size_per_image)
                for iou in STAGE_IOUS
            ],
            limits,
        )
