"""Object detectors: image -> features -> boxes, with two stages or as a set.

Two-stage detectors, read in this order: ``two_stage`` (the way of a picture through the network),
``anchors``, ``boxes``, ``matching``, ``rpn`` (proposals), ``roi_align``, ``box_head``,
``mask_head``, ``roi_head`` (boxes and masks of Mask R-CNN), ``cascade_roi_head``, ``mask_paste``.

DINO: ``dino`` (the way of a picture), ``padding`` (what is picture on a map),
``dino_transformer`` (encoder, choice of queries), ``dino_decoder``, ``denoising``, ``dino_head``
(losses and detections).
"""

from __future__ import annotations

from src.models.detection.rcnn.cascade_mask_rcnn import CascadeMaskRCNN
from src.models.detection.detector import Detector
from src.models.detection.dino.detector import CBDINO, DINO
from src.models.detection.rcnn.mask_rcnn import MaskRCNN
from src.models.detection.rcnn.two_stage import TwoStageDetector

__all__ = ["CBDINO", "DINO", "CascadeMaskRCNN", "Detector", "MaskRCNN", "TwoStageDetector"]
