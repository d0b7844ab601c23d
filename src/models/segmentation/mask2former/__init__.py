"""Mask2Former: segmentation by classified masks.

- ``segmentor.py``: the network; read this first.
- ``head.py``: query decoder with masked attention, and the predictions.
- ``pixel_decoder.py``: deformable encoder and feature pyramid.
"""

from __future__ import annotations

from src.models.segmentation.mask2former.head import Mask2FormerHead
from src.models.segmentation.mask2former.segmentor import Mask2Former

__all__ = ["Mask2Former", "Mask2FormerHead"]
