"""Segmentors: networks that score every pixel, and inference on whole pictures."""

from __future__ import annotations

from src.models.segmentors.inference import SlidingWindow, picture_probabilities, slide_logits
from src.models.segmentors.segmentor import Segmentor

__all__ = ["Segmentor", "SlidingWindow", "picture_probabilities", "slide_logits"]
