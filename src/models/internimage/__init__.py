"""InternImage and FlashInternImage: one backbone with DCNv3 or DCNv4, and its classifiers.

- ``mixer.py``: the interface of the spatial mixer of a block.
- ``dcnv3.py``, ``dcnv4.py``: the mixers, which call the operators in ``src.ops``.
- ``blocks.py``, ``stage.py``: stem, block, downsampling; blocks of one resolution.
- ``backbone.py``: the backbone, one feature map per stage.
- ``inference.py``: copies for inference on a CPU, with packed weights.
- ``fused_block.py``, ``inference_cache.py``: a block as one operator; when networks use it.
- ``packed_block.py``, ``packed_conv.py``: layers with packed weights; ``own_layers.py``: whether a
  layer was replaced.
- ``heads.py``, ``classifier.py``: pooling heads and the classifier with timm's contract.
- ``metaformer.py``: the classifier that also reads date and place (iNaturalist 2018).
- ``composite.py``: two backbones combined (CBNet).
- ``imagenet22k.py``: the classes of ImageNet-1k among those of ImageNet-22k.
- ``architectures.py``, ``registry.py``: the named variants and their timm entries.
"""

from __future__ import annotations

from src.models.internimage.architectures import ARCHITECTURES
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.classifier import InternImage
from src.models.internimage.composite import CBInternImageBackbone
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.models.internimage.inference import prepare_for_inference
from src.models.internimage.metaformer import InternImageMetaFormer
from src.models.internimage.mixer import SpatialMixer

__all__ = [
    "ARCHITECTURES",
    "CBInternImageBackbone",
    "DCNv3",
    "DCNv4",
    "InternImage",
    "InternImageBackbone",
    "InternImageMetaFormer",
    "SpatialMixer",
    "prepare_for_inference",
]
