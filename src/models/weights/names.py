"""Our parameter names and the official ones.

The networks of this project name their parameters as the official code does, without the positional
indices of ``nn.Sequential``. `RENAMES` holds the differences; everything else is spelled alike.
"""

from __future__ import annotations

import re

from torch import nn

from src.models.detection.dino.decoder import DecoderLayer
from src.models.detection.dino.detector import CBDINO
from src.models.internimage.backbone import InternImageBackbone
from src.models.layers.deformable_encoder import EncoderLayer
from src.models.segmentation.mask2former.head import MaskedAttentionLayer
from src.models.segmentation.upernet import UPerHead

_FEED_FORWARD = (
    (r"^ffn\.fc1\.(\d+)\.", r"ffns.0.fc1_\1."),
    (r"^ffn\.fc2\.(\d+)\.", r"ffns.0.fc2_\1."),
    (r"^ffn\.fc2_bias", "ffns.0.fc2_bias"),
    (r"^ffn\.fc1\.", "ffns.0.layers.0.0."),
    (r"^ffn\.fc2\.", "ffns.0.layers.1."),
)

RENAMES: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    InternImageBackbone: (
        (r"^(patch_embed\.norm\d)\.", r"\1.1."),
        (r"^(levels\.\d+\.downsample\.norm)\.", r"\1.1."),
        (r"^(levels\.\d+\.norm)\.", r"\1.0."),
        (r"^(levels\.\d+\.post_norms\.\d+)\.", r"\1.0."),
        (r"^(levels\.\d+\.blocks\.\d+\.(?:res_post_)?norm\d)\.", r"\1.0."),
        (r"^(levels\.\d+\.blocks\.\d+\.dcn\.dw_conv)\.", r"\1.0."),
        (r"^(levels\.\d+\.blocks\.\d+\.dcn)\.dw_norm\.", r"\1.dw_conv.1.1."),
        (r"^conv_head\.conv\.", "conv_head.0."),
        (r"^conv_head\.norm\.", "conv_head.1.0."),
        (r"^dcnv3_head_x4\.", "dcnv3_head_x4.0."),
        (r"^(clip_projector\.norm1_[qkv])\.", r"\1.0."),
        (r"^fc_norm\.", "fc_norm.0."),
    ),
    EncoderLayer: ((r"^attention\.", "attentions.0."), *_FEED_FORWARD),
    DecoderLayer: (
        (r"^self_attention\.", "attentions.0.attn."),
        (r"^cross_attention\.", "attentions.1."),
        *_FEED_FORWARD,
    ),
    MaskedAttentionLayer: (
        (r"^cross_attention\.", "attentions.0.attn."),
        (r"^self_attention\.", "attentions.1.attn."),
        *_FEED_FORWARD,
    ),
    CBDINO: ((r"^neck\.", "neck.0."),),
    UPerHead: ((r"^(psp_modules\.\d+)\.", r"\1.1."),),
}
"""Per module type: patterns on its own names and the official spelling; the first match counts."""


def official_names(module: nn.Module) -> dict[str, str]:
    """Official name of every entry of ``module.state_dict()``, by our name.

    Args:
        module: A network or any module that contains one; prefixes such as ``backbone.`` stay.

    Returns:
        Names in the order of the state dict.
    """
    tables = [
        (f"{prefix}." if prefix else "", rules)
        for prefix, child in module.named_modules()
        for kind, rules in RENAMES.items()
        if isinstance(child, kind)
    ]
    tables.sort(key=lambda table: len(table[0]), reverse=True)  # innermost module first
    names = {}
    for ours in module.state_dict():
        prefix, rules = next((t for t in tables if ours.startswith(t[0])), ("", ()))
        names[ours] = prefix + _rename(ours.removeprefix(prefix), rules)
    return names


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name
