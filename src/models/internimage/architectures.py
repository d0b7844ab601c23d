"""Constructor arguments of the named InternImage variants.

Source: official configurations (OpenGVLab/InternImage, MIT). ``internimage_nano`` is ours, a small
network for laptops without published weights.
"""

from __future__ import annotations

from typing import Any

_SCALED = {"layer_scale": 1e-5, "post_norm": True}
_HUGE = {"dw_kernel_size": 5, "center_feature_scale": True, "use_clip_projector": True}

ARCHITECTURES: dict[str, dict[str, Any]] = {
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
}
"""Constructor arguments of `InternImage` per variant."""
