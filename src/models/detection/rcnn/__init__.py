"""Two-stage detectors: proposals, then boxes and masks.

- ``two_stage.py``: forward pass of a two-stage detector; read this first.
- ``mask_rcnn.py``, ``cascade_mask_rcnn.py``, ``cascade_rcnn.py``: the detectors as configured.
- ``anchors.py``, ``rpn.py``: anchors and the region proposal network.
- ``assigner.py``: assignment of ground-truth boxes to anchors and proposals, and sampling.
- ``roi_align.py``, ``box_head.py``, ``mask_head.py``: features of a region, its class and box, and
  its mask.
- ``roi_head.py``, ``cascade_roi_head.py``: the second stage, of one or several stages.
- ``postprocess.py``: from scores and boxes to detections with masks at image size.
- ``graphs.py``: what is exported.
"""

from __future__ import annotations

from src.models.detection.rcnn.cascade_mask_rcnn import CascadeMaskRCNN
from src.models.detection.rcnn.cascade_rcnn import CascadeRCNN
from src.models.detection.rcnn.mask_rcnn import MaskRCNN
from src.models.detection.rcnn.two_stage import TwoStageDetector

__all__ = ["CascadeMaskRCNN", "CascadeRCNN", "MaskRCNN", "TwoStageDetector"]
