"""Segmentors: networks that score every pixel, and inference on whole pictures."""

from __future__ import annotations

from src.models.segmentors.inference import (
    SlidingWindow,
    number_of_forwards,
    picture_probabilities,
    probability_strips,
    slide_logits,
)
from src.models.segmentors.mask2former import Mask2Former
from src.models.segmentors.segmentor import Outputs, Segmentor

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
