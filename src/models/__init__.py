"""Networks as plain modules: InternImage, its heads, and the official weights."""

from __future__ import annotations

from src.models.composite_backbone import CBInternImageBackbone
from src.models.detectors import CBDINO, DINO, CascadeMaskRCNN, MaskRCNN
from src.models.heads.fcn import FCNHead
from src.models.heads.mask2former import Mask2FormerHead
from src.models.heads.upernet import UPerHead
from src.models.internimage import InternImage, InternImageBackbone
from src.models.layers import DCNv3
from src.models.segmentors import Mask2Former, Segmentor
from src.models.variants import ARCHITECTURES

__all__ = [
    "ARCHITECTURES",
    "CBDINO",
    "DINO",
    "CBInternImageBackbone",
    "CascadeMaskRCNN",
    "DCNv3",
    "FCNHead",
    "InternImage",
    "InternImageBackbone",
    "Mask2Former",
    "Mask2FormerHead",
    "MaskRCNN",
    "Segmentor",
    "UPerHead",
]
