"""Networks as plain modules: InternImage, its heads, and the official weights."""

from __future__ import annotations

from src.models.internimage.composite import CBInternImageBackbone
from src.models.detection import CBDINO, DINO, CascadeMaskRCNN, MaskRCNN
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.mask2former.head import Mask2FormerHead
from src.models.segmentation.upernet import UPerHead
from src.models.internimage.classifier import InternImage, InternImageBackbone
from src.models.internimage.dcnv3 import DCNv3
from src.models.segmentation import Mask2Former, Segmentor
from src.models.internimage.registry import ARCHITECTURES

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
