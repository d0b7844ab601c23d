"""Segmentors: networks that score every pixel, and inference on whole pictures."""

from __future__ import annotations

from src.models.segmentation.inference import (
    SlidingWindow,
    number_of_forwards,
    picture_probabilities,
    probability_strips,
    slide_logits,
)
from src.models.segmentation.mask2former.segmentor import Mask2Former
from src.models.segmentation.segmentor import Outputs, Segmentor

__all__ = [
    "Mask2Former",
    "Outputs",
    "Segmentor",
    "SlidingWindow",
    "number_of_forwards",
    "picture_probabilities",
    "probability_strips",
    "slide_logits",
]
