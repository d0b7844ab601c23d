"""Parameter groups: which weights decay, and at what share of the learning rate each one learns.

The rules are those of the official InternImage classification recipe (weight decay, layer-wise
learning-rate decay and the multiplier for the sampling layers). Parameters with the same settings
share one group, so an optimizer sees a few dozen groups instead of one per parameter. Learning
rates are *not* set here: a group carries ``lr_scale`` and the task multiplies the optimizer's own
learning rate by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import nn

LrScale = Callable[[str], float]

# Sampling layers that ``dcn_lr_scale`` slows down. As in the official recipe, the mask layer is not
# among them.
_DCN_NAMES = ("offset", "attention_weights", "center_feature_scale_proj", "alpha_beta")
_BLOCK = re.compile(r"(?:^|\.)levels\.(\d+)\.blocks\.(\d+)\.")
_BETWEEN = re.compile(r"(?:^|\.)levels\.(\d+)\.(?:downsample|norm)\.")


def has_weight_decay(name: str, ndim: int) -> bool:
    """Tell whether a parameter is decayed: all but vectors, scalars and any ``*.bias``."""
    return ndim > 1 and not name.endswith(".bias")


def lr_scale_by_depth(
    depths: Sequence[int], layer_decay: float, dcn_lr_scale: float | None = None
) -> LrScale:
    """Layer-wise learning-rate decay for an InternImage classifier.

    The last block of the last stage has scale 1, every block before it ``layer_decay`` times its
    successor. The stem (``patch_embed``) shares the scale of the very first block; the norm and the
    downsampling layer that close a stage share that of the next stage's first block. Everything
    else (last norm, ``post_norms``, head) keeps scale 1.

    Args:
        depths: Blocks per stage, first stage first.
        layer_decay: Ratio between neighbouring blocks, in (0, 1].
        dcn_lr_scale: Extra factor for offset and centre-feature-scale layers; ``None`` is 1.

    Returns:
        A function from parameter name to learning-rate scale.

    Raises:
        ValueError: If ``layer_decay`` is outside (0, 1] or ``dcn_lr_scale`` is negative.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"layer_decay must be in (0, 1], got {layer_decay}; use null to switch it off"
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
        named_parameters: As ``module.named_parameters()`` gives them. Frozen ones are left out.
        lr_scale: Learning-rate scale of a parameter name; ``None`` is 1 for all.
        no_decay: Further names that are not decayed.
        decay_all: Decay every parameter, vectors and biases too.

    Returns:
        Groups with keys ``params``, ``name`` (unique), ``lr_scale`` and, where weights are not
        decayed, ``weight_decay`` 0. Largest scale first, order of parameters kept.

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
        raise ValueError(
            "no parameter is trainable: all have requires_grad=False, so there is nothing to fit"
        )
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
