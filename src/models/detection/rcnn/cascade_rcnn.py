"""Cascade R-CNN on InternImage: boxes without masks.

Source: Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018 (arXiv 1712.00726), with the constants of
the official configuration ``cascade_internimage_xl_fpn_3x_crowd_human`` (mmdet 2.28): box heads of
two fully connected layers, offsets that are the same for all classes, a smooth L1 loss. Parameter
names are the official ones.
"""

from __future__ import annotations

from src.models.detection.rcnn.assigner import RegionSampler
from src.models.detection.rcnn.box_head import BoxHead
from src.models.detection.rcnn.cascade_mask_rcnn import CascadeMaskRCNN
from src.models.detection.rcnn.cascade_roi_head import STAGE_IOUS, CascadeBoxHead
from src.models.detection.rcnn.postprocess import DetectionLimits
from src.models.detection.rcnn.roi_head import RoIHead


class CascadeRCNN(CascadeMaskRCNN):
    """Cascade R-CNN with a feature pyramid; the arguments are those of `CascadeMaskRCNN`."""

    kinds = ("bbox",)

    @staticmethod
    def make_roi_head(
        num_classes: int,
        channels: int,
        fc_channels: int,
        batch_size_per_image: int,
        limits: DetectionLimits,
    ) -> RoIHead:
        """See `MaskRCNN.make_roi_head`."""
        return CascadeBoxHead(
            [BoxHead(num_classes, channels, fc_channels, class_agnostic=True) for _ in STAGE_IOUS],
            [
                RegionSampler(num_classes, iou, low_quality=False, number=batch_size_per_image)
                for iou in STAGE_IOUS
            ],
            limits,
        )
