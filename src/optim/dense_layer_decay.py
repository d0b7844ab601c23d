"""Layer-wise learning rates of the official detection and segmentation recipes.

They differ from the classification rule (``param_groups.py``): the layer number counts all blocks
of the backbone from the stem on, and everything outside the backbone has the full learning rate.
Two irregularities of the official code are kept, because the published weights were trained with
them:

- ``levels.2.post_norms.j`` has the learning rate of block ``j`` of that stage;
- ``backbone.cb_modules.*`` (the composite backbone) has the full learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from src.optim.param_groups import LrScale

_BLOCK = re.compile(r"^backbone\.levels\.(\d+)\.(?:blocks|post_norms)\.(\d+)\.")
_BETWEEN = re.compile(r"^backbone\.levels\.(\d+)\.(?:downsample|norm)\.")
_FIRST = re.compile(r"^backbone\.patch_embed\.|level_embeds")
_FIRST_OF_SEGMENTATION = re.compile(
    r"^decode_head\.(?:mask_embed|cls_embed|level_embed|query_embed|query_feat)"
    r"|^backbone\.cb_modules\.0\.patch_embed\."
)
_OFFSETS = re.compile(r"sampling_offsets|reference_points|offset_mask(?!_dw)")
_NO_DECAY = ("relative_position", "norm", "sampling_offsets")


def dense_layer_id(name: str, depths: Sequence[int], *, segmentation: bool = False) -> int:
    """Layer number of a parameter, from 0 (stem) to the number of blocks + 1 (heads).

    Args:
        name: Parameter name of a detector or segmentor, with prefix ``backbone.``.
        depths: Blocks per stage.
        segmentation: Whether to use the rule of the segmentation code, in which the queries and
            embeddings of Mask2Former have layer 0.

    Returns:
        Layer number.
    """
    if match := _BLOCK.match(name):
        return 1 + int(match[2]) + sum(depths[: int(match[1])])
    if match := _BETWEEN.match(name):
        return 1 + sum(depths[: min(int(match[1]) + 1, 3)])
    if _FIRST.search(name) or (segmentation and _FIRST_OF_SEGMENTATION.search(name)):
        return 0
    return sum(depths) + 1


def dense_lr_scale(
    depths: Sequence[int],
    layer_decay: float,
    *,
    offset_lr_scale: float = 1.0,
    segmentation: bool = False,
) -> LrScale:
    """Learning-rate scale by parameter name: ``layer_decay ** (blocks + 1 - layer)``.

    Args:
        depths: Blocks per stage of the backbone.
        layer_decay: Ratio of the learning rates of adjacent layers, in (0, 1]; 1 turns it off.
        offset_lr_scale: Extra factor for ``sampling_offsets`` and ``reference_points`` (DINO) and
            for the layers ``offset_mask`` of DCNv4. The segmentation rule applies it only inside
            the backbone.
        segmentation: See `dense_layer_id`.

    Returns:
        A function from parameter name to learning-rate scale.

    Raises:
        ValueError: If ``layer_decay`` is outside (0, 1] or ``offset_lr_scale`` is negative.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}; 1 turns it off")
    if offset_lr_scale < 0:
        raise ValueError(f"offset_lr_scale must be 0 or more, got {offset_lr_scale}")
    last = sum(depths) + 1

    def scale(name: str) -> float:
        depth = layer_decay ** (last - dense_layer_id(name, depths, segmentation=segmentation))
        is_offset = _OFFSETS.search(name) is not None
        if segmentation:
            is_offset &= "backbone" in name
        return depth * offset_lr_scale if is_offset else depth

    return scale


def has_dense_weight_decay(name: str, ndim: int) -> bool:
    """Whether the official detection and segmentation recipes use weight decay for a parameter.

    Args:
        name: Parameter name.
        ndim: Number of dimensions; vectors have no weight decay.

    Returns:
        False for vectors, biases, norms and sampling offsets.
    """
    return ndim > 1 and not name.endswith(".bias") and not any(key in name for key in _NO_DECAY)
