"""Networks as plain modules: InternImage, its heads, and the official weights."""

from __future__ import annotations

from src.models.internimage import InternImage, InternImageBackbone
from src.models.layers import DCNv3
from src.models.variants import ARCHITECTURES

__all__ = ["ARCHITECTURES", "DCNv3", "InternImage", "InternImageBackbone"]
