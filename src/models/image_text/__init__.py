"""Image and text towers with a common embedding, for joint image-text pre-training.

- ``model.py``: both towers, projection of the image features, temperature.
- ``text_tower.py``: text towers of open_clip.
- ``text_weights.py``: loading weights of a text tower from a file of open_clip.
"""

from __future__ import annotations

from src.models.image_text.model import ImageTextFeatures, ImageTextModel
from src.models.image_text.text_tower import OpenCLIPTextTower, TextTower
from src.models.image_text.text_weights import load_text_weights

__all__ = [
    "ImageTextFeatures",
    "ImageTextModel",
    "OpenCLIPTextTower",
    "TextTower",
    "load_text_weights",
]
