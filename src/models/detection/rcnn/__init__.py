"""Two-stage detectors: proposals, then boxes and masks.

- ``two_stage.py``: forward pass of a two-stage detector; read this first.
- ``mask_rcnn.py``, ``cascade_mask_rcnn.py``: the two detectors as they are configured.
- ``anchors.py``, ``rpn.py``: anchors and the region proposal network.
- ``assigner.py``: assignment of ground-truth boxes to anchors and proposals, and sampling.
- ``roi_align.py``, ``box_head.py``, ``mask_head.py``, ``mask_paste.py``: features of a region, its
  class and box, its mask, and the mask at image size.
- ``roi_head.py``, ``cascade_roi_head.py``: the second stage, once or three times refined.
"""

from __future__ import annotations

from src.models.detection.rcnn.cascade_mask_rcnn import CascadeMaskRCNN
from src.models.detection.rcnn.mask_rcnn import MaskRCNN
from src.models.detection.rcnn.two_stage import TwoStageDetector

__all__ = ["CascadeMaskRCNN", "MaskRCNN", "TwoStageDetector"]
