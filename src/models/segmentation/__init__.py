"""Semantic segmentation: networks that score every pixel.

- ``segmentor.py``: backbone and heads; read this first.
- ``head.py``: the interface of the heads and what they share.
- ``upernet.py``, ``fcn.py``: UPerNet's head and the auxiliary head.
- ``segformer.py``: the head of SegFormer.
- ``mask2former/``: Mask2Former.
- ``inference.py``: inference on whole images and by sliding window.
- ``graphs.py``: what is exported.
"""

from __future__ import annotations

from src.models.segmentation.inference import (
    SlidingWindow,
    image_probabilities,
    number_of_forwards,
    probability_strips,
    slide_logits,
)
from src.models.segmentation.mask2former import Mask2Former
from src.models.segmentation.segmentor import Outputs, Segmentor

__all__ = [
    "Mask2Former",
    "Outputs",
    "Segmentor",
    "SlidingWindow",
    "image_probabilities",
    "number_of_forwards",
    "probability_strips",
    "slide_logits",
]
