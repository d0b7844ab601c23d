"""Object detectors: image -> features -> proposals -> boxes -> masks.

Read in this order: ``two_stage`` (the way of a picture through the network), ``anchors``,
``boxes``, ``matching``, ``rpn`` (proposals), ``roi_align``, ``box_head``, ``mask_head``,
``roi_head`` (boxes and masks of Mask R-CNN), ``cascade_roi_head``, ``mask_paste``.
"""

from __future__ import annotations

from src.models.detectors.cascade_mask_rcnn import CascadeMaskRCNN
from src.models.detectors.mask_rcnn import MaskRCNN
from src.models.detectors.two_stage import TwoStageDetector

__all__ = ["CascadeMaskRCNN", "MaskRCNN", "TwoStageDetector"]
