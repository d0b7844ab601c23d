"""The named variants of InternImage: which arguments they set, and to what.

Source: official configurations (OpenGVLab/InternImage and OpenGVLab/DCNv4, MIT).
``internimage_nano`` is a small variant for laptops without published weights.
"""

# Without `from __future__ import annotations`: jsonargparse reads the types at run time.
from typing import Literal, NotRequired, TypedDict

from src.errors import UserError


class MixerOptions(TypedDict):
    """Which spatial mixer a backbone has, `DCNv3` or `DCNv4`, and its options; see there."""

    core_op: NotRequired[Literal["DCNv3", "DCNv4"]]
    kernel_size: NotRequired[int]
    dw_kernel_size: NotRequired[int | None]
    offset_scale: NotRequired[float]
    center_feature_scale: NotRequired[bool]
    remove_center: NotRequired[bool]
    dcn_output_bias: NotRequired[bool]


class Architecture(MixerOptions):
    """Arguments of `InternImageBackbone` that a named variant may set; see there."""

    channels: NotRequired[int]
    depths: NotRequired[tuple[int, ...]]
    groups: NotRequired[tuple[int, ...]]
    drop_path_rate: NotRequired[float]
    layer_scale: NotRequired[float | None]
    mlp_fc2_bias: NotRequired[bool]
    post_norm: NotRequired[bool]
    res_post_norm: NotRequired[bool]
    level2_post_norm_block_ids: NotRequired[tuple[int, ...] | None]
    norm_layer: NotRequired[Literal["LN", "BN"]]


class ClassifierArchitecture(Architecture):
    """Arguments of `InternImage` that a named variant may set."""

    use_clip_projector: NotRequired[bool]


DEFAULTS: ClassifierArchitecture = {
    "channels": 64,
    "depths": (4, 4, 18, 4),
    "groups": (4, 8, 16, 32),
    "drop_path_rate": 0.0,
    "layer_scale": None,
    "mlp_fc2_bias": True,
    "post_norm": False,
    "res_post_norm": False,
    "level2_post_norm_block_ids": None,
    "norm_layer": "LN",
    "core_op": "DCNv3",
    "kernel_size": 3,
    "dw_kernel_size": None,
    "offset_scale": 1.0,
    "center_feature_scale": False,
    "remove_center": False,
    "dcn_output_bias": True,
    "use_clip_projector": False,
}
"""Values of what neither the caller nor the variant sets."""

_SCALED: ClassifierArchitecture = {"layer_scale": 1e-5, "post_norm": True}
_HUGE: ClassifierArchitecture = {
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "use_clip_projector": True,
}
_FLASH: ClassifierArchitecture = {
    "core_op": "DCNv4",
    "dcn_output_bias": False,
    "mlp_fc2_bias": False,
}
_FLASH_SCALED: ClassifierArchitecture = {**_FLASH, **_SCALED, "dw_kernel_size": 3}

ARCHITECTURES: dict[str, ClassifierArchitecture] = {
    "internimage_nano": {
        "channels": 32,
        "depths": (1, 1, 3, 1),
        "groups": (2, 4, 8, 16),
        "drop_path_rate": 0.05,
    },
    "internimage_t": {
        "channels": 64,
        "depths": (4, 4, 18, 4),
        "groups": (4, 8, 16, 32),
        "drop_path_rate": 0.1,
    },
    "internimage_s": {
        "channels": 80,
        "depths": (4, 4, 21, 4),
        "groups": (5, 10, 20, 40),
        "drop_path_rate": 0.4,
        **_SCALED,
    },
    "internimage_b": {
        "channels": 112,
        "depths": (4, 4, 21, 4),
        "groups": (7, 14, 28, 56),
        "drop_path_rate": 0.5,
        **_SCALED,
    },
    "internimage_l": {
        "channels": 160,
        "depths": (5, 5, 22, 5),
        "groups": (10, 20, 40, 80),
        "drop_path_rate": 0.1,
        "offset_scale": 2.0,
        **_SCALED,
    },
    "internimage_xl": {
        "channels": 192,
        "depths": (5, 5, 24, 5),
        "groups": (12, 24, 48, 96),
        "drop_path_rate": 0.2,
        "offset_scale": 2.0,
        **_SCALED,
    },
    "internimage_h": {
        "channels": 320,
        "depths": (6, 6, 32, 6),
        "groups": (10, 20, 40, 80),
        "drop_path_rate": 0.2,
        "res_post_norm": True,
        "level2_post_norm_block_ids": (5, 11, 17, 23, 29),
        **_HUGE,
    },
    "internimage_g": {
        "channels": 512,
        "depths": (2, 2, 48, 4),
        "groups": (16, 32, 64, 128),
        "drop_path_rate": 0.4,
        "post_norm": True,
        "level2_post_norm_block_ids": (5, 11, 17, 23, 29, 35, 41, 47),
        **_HUGE,
    },
    "flash_internimage_t": {
        "channels": 64,
        "depths": (4, 4, 18, 4),
        "groups": (4, 8, 16, 32),
        "drop_path_rate": 0.1,
        **_FLASH,
    },
    "flash_internimage_s": {
        "channels": 80,
        "depths": (4, 4, 21, 4),
        "groups": (5, 10, 20, 40),
        "drop_path_rate": 0.4,
        **_FLASH_SCALED,
    },
    "flash_internimage_b": {
        "channels": 112,
        "depths": (4, 4, 21, 4),
        "groups": (7, 14, 28, 56),
        "drop_path_rate": 0.5,
        "offset_scale": 0.5,
        **_FLASH_SCALED,
    },
    "flash_internimage_l": {
        "channels": 160,
        "depths": (5, 5, 22, 5),
        "groups": (10, 20, 40, 80),
        "drop_path_rate": 0.1,
        "offset_scale": 2.0,
        **_FLASH_SCALED,
        "dcn_output_bias": True,
        "mlp_fc2_bias": True,
    },
}
"""What each named variant sets."""


def architecture_of(variant: str | None, given: Architecture) -> ClassifierArchitecture:
    """Complete architecture: what is given, else the variant's value, else the default.

    Args:
        variant: A key of `ARCHITECTURES`, or ``None`` for the defaults alone.
        given: Arguments of the caller.

    Raises:
        TypeError: If an argument is unknown.
        UserError: If there is no such variant.
    """
    if unknown := sorted(given.keys() - Architecture.__optional_keys__):
        raise TypeError(f"InternImageBackbone got an unexpected keyword argument {unknown[0]!r}")
    if variant is not None and variant not in ARCHITECTURES:
        full = f"internimage_{variant}"
        hint = f" Did you mean {full!r}?" if full in ARCHITECTURES else ""
        raise UserError(
            f"There is no InternImage variant {variant!r}; expected one of"
            f" {', '.join(ARCHITECTURES)}, or null with channels, depths and groups written out."
            f"{hint}"
        )
    own: ClassifierArchitecture = {} if variant is None else ARCHITECTURES[variant]
    return {**DEFAULTS, **own, **given}
