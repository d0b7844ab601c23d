"""Object detectors: two-stage (``rcnn``) and set prediction (``dino``).

- ``detector.py``: the interface of every detector.
- ``detection_transformer.py``: the base of DETR-like detectors.
- ``boxes.py``, ``nms.py``: box arithmetic and non-maximum suppression.
- ``tta.py``: fusion of the detections of several views (test-time augmentation).
- ``rcnn/``: Mask R-CNN and Cascade Mask R-CNN.
- ``dino/``: DINO and CB-DINO.
"""

from __future__ import annotations

from src.models.detection.detection_transformer import DetectionTransformer, SetPredictionHead
from src.models.detection.detector import Detector, TrainingOutput
from src.models.detection.dino import CBDINO, DINO
from src.models.detection.rcnn import CascadeMaskRCNN, CascadeRCNN, MaskRCNN, TwoStageDetector

__all__ = [
    "CBDINO",
    "DINO",
    "CascadeMaskRCNN",
    "CascadeRCNN",
    "DetectionTransformer",
    "Detector",
    "MaskRCNN",
    "SetPredictionHead",
    "TrainingOutput",
    "TwoStageDetector",
]
