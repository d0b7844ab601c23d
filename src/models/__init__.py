"""Networks as plain modules: InternImage, its heads, and the official weights."""

from __future__ import annotations

from src.models.detection import CBDINO, DINO, CascadeMaskRCNN, CascadeRCNN, MaskRCNN
from src.models.image_text import ImageTextModel, OpenCLIPTextTower, TextTower
from src.models.internimage import (
    ARCHITECTURES,
    CBInternImageBackbone,
    DCNv3,
    DCNv4,
    InternImage,
    InternImageBackbone,
    InternImageMetaFormer,
    SpatialMixer,
    prepare_for_inference,
    registry,  # noqa: F401  registers the variants with timm
)
from src.models.segmentation import Mask2Former, Segmentor
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.mask2former import Mask2FormerHead
from src.models.segmentation.segformer import SegFormerHead
from src.models.segmentation.upernet import UPerHead
from src.models.weights import files as checkpoints  # noqa: F401  the former name of the module

__all__ = [
    "ARCHITECTURES",
    "CBDINO",
    "DINO",
    "CBInternImageBackbone",
    "CascadeMaskRCNN",
    "CascadeRCNN",
    "DCNv3",
    "DCNv4",
    "FCNHead",
    "ImageTextModel",
    "InternImage",
    "InternImageBackbone",
    "InternImageMetaFormer",
    "Mask2Former",
    "Mask2FormerHead",
    "MaskRCNN",
    "OpenCLIPTextTower",
    "SegFormerHead",
    "Segmentor",
    "SpatialMixer",
    "TextTower",
    "UPerHead",
    "prepare_for_inference",
]
