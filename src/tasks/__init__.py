"""LightningModules, one per task.

Tasks depend on networks and batch types (``src.types``), not on datasets.
"""

from src.tasks.base import BaseTask, can_predict
from src.tasks.classification import ClassificationTask
from src.tasks.detection import DetectionTask
from src.tasks.image_text import ImageTextTask
from src.tasks.segmentation import SegmentationTask

__all__ = [
    "BaseTask",
    "ClassificationTask",
    "DetectionTask",
    "ImageTextTask",
    "SegmentationTask",
    "can_predict",
]
