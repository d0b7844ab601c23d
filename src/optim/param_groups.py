"""Parameter groups with weight decay and layer-wise learning-rate scales.

The rules are those of the official InternImage classification recipe (weight decay, layer-wise
learning-rate decay and the multiplier for the sampling layers). Parameters with the same settings
share one group, so an optimizer gets a few dozen groups instead of one per parameter. Learning
rates are *not* set here: each group has an ``lr_scale``, and the task multiplies the learning rate
of the optimizer by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import nn

LrScale = Callable[[str], float]

# Layers that ``dcn_lr_scale`` applies to. As in the official recipe, these do not include the mask
# layer.
_DCN_NAMES = ("offset", "attention_weights", "center_feature_scale_proj", "alpha_beta")
_BLOCK = re.compile(r"(?:^|\.)levels\.(\d+)\.blocks\.(\d+)\.")
_BETWEEN = re.compile(r"(?:^|\.)levels\.(\d+)\.(?:downsample|norm)\.")


def has_weight_decay(name: str, ndim: int) -> bool:
    """Whether a parameter has weight decay: all except vectors, scalars and any ``*.bias``."""
    return ndim > 1 and not name.endswith(".bias")


def lr_scale_by_depth(
    depths: Sequence[int], layer_decay: float, dcn_lr_scale: float | None = None
) -> LrScale:
    """Layer-wise learning-rate decay for an InternImage classifier.

    The last block of the last stage has scale 1, and every other block ``layer_decay`` times the
    scale of the next block. The stem (``patch_embed``) has the scale of the first block. The norm
    and the downsampling layer at the end of a stage have the scale of the first block of the next
    stage. Everything else (last norm, ``post_norms``, head) has scale 1.

    Args:
        depths: Blocks per stage, first stage first.
        layer_decay: Ratio of the learning rates of adjacent blocks, in (0, 1].
        dcn_lr_scale: Extra factor for offset and centre-feature-scale layers; ``None`` is 1.

    Returns:
        A function from parameter name to learning-rate scale.

    Raises:
        ValueError: If ``layer_decay`` is outside (0, 1] or ``dcn_lr_scale`` is negative.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"layer_decay must be in (0, 1], got {layer_decay}; use null to turn it off"
        )
    if dcn_lr_scale is not None and dcn_lr_scale < 0:
        raise ValueError(f"dcn_lr_scale must be 0 or more, got {dcn_lr_scale}")
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    scales = {key: layer_decay**index for index, key in enumerate(reversed(blocks))}

    def depth_scale(name: str) -> float:
        if match := _BLOCK.search(name):
            return scales.get((int(match[1]), int(match[2])), 1.0)
        if match := _BETWEEN.search(name):
            return scales.get((int(match[1]) + 1, 0), 1.0)
        return scales[0, 0] if re.search(r"(?:^|\.)patch_embed\.", name) else 1.0

    def scale(name: str) -> float:
        is_dcn = dcn_lr_scale is not None and any(key in name for key in _DCN_NAMES)
        return depth_scale(name) * (dcn_lr_scale if is_dcn and dcn_lr_scale is not None else 1.0)

    return scale


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr_scale: LrScale | None = None,
    no_decay: Collection[str] = (),
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into named optimizer groups.

    Args:
        named_parameters: Result of ``module.named_parameters()``. Frozen ones are skipped.
        lr_scale: Function from parameter name to learning-rate scale; ``None`` is 1 for all.
        no_decay: Names of further parameters without weight decay.
        decay_all: Use weight decay for every parameter, including vectors and biases.

    Returns:
        Groups with keys ``params``, ``name`` (unique), ``lr_scale`` and, for parameters without
        weight decay, ``weight_decay`` 0. Sorted by descending scale; parameters keep their order.

    Raises:
        ValueError: If no parameter is trainable.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            decays = has_weight_decay(name, parameter.ndim) and name not in no_decay
            decays = decays or decay_all
            key = (lr_scale(name) if lr_scale else 1.0, decays)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("no parameter is trainable, because all of them have requires_grad=False")
    return [
        _group(scale, decays, groups[scale, decays])
        for scale, decays in sorted(groups, reverse=True)
    ]


def _group(scale: float, decays: bool, parameters: list[nn.Parameter]) -> dict[str, Any]:
    name = "decay" if decays else "no_decay"
    group: dict[str, Any] = {
        "params": parameters,
        "name": name if scale == 1.0 else f"{name}_x{scale:.6g}",
        "lr_scale": scale,
    }
    return group if decays else group | {"weight_decay": 0.0}
