"""Registration of the named InternImage variants with timm.

Importing this module (or ``src.models``) makes ``timm.create_model("internimage_t")``,
``timm.list_models("*internimage*")`` and ``features_only=True`` work. Tags name published weights;
``pretrained=True`` downloads the official file and converts it with ``src.models.weights.load``.

The arguments of each variant are in ``architectures.py``.
"""

from __future__ import annotations

from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from src.models.internimage.architectures import ARCHITECTURES
from src.models.internimage.classifier import InternImage
from src.models.weights import convert_state_dict
from src.models.weights.files import FLASH_REPO, HUB_REPO, download

FLASH: dict[str, Any] = {
    "hf_hub_id": FLASH_REPO,
    "paper_ids": "arXiv:2401.06197",
    "origin_url": "https://github.com/OpenGVLab/DCNv4",
}


def _cfg(filename: str = "", size: int = 224, **kwargs: Any) -> dict[str, Any]:
    hub = {"hf_hub_id": HUB_REPO, "hf_hub_filename": filename, "custom_load": "hf"}
    return {
        **(hub if filename else {}),
        "input_size": (3, size, size),
        "num_classes": 1000,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": "patch_embed.conv1",
        "classifier": "head",
        "license": "mit",
        "paper_ids": "arXiv:2211.05778",
        "origin_url": "https://github.com/OpenGVLab/InternImage",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "internimage_nano": _cfg(),
        "internimage_t.in1k_224": _cfg("internimage_t_1k_224.pth"),
        "internimage_s.in1k_224": _cfg("internimage_s_1k_224.pth"),
        "internimage_b.in1k_224": _cfg("internimage_b_1k_224.pth"),
        "internimage_l.in22k_ft_in1k_384": _cfg("internimage_l_22kto1k_384.pth", 384),
        "internimage_l.in22k_384": _cfg("internimage_l_22k_192to384.pth", 384, num_classes=21841),
        "internimage_xl.in22k_ft_in1k_384": _cfg("internimage_xl_22kto1k_384.pth", 384),
        "internimage_xl.in22k_384": _cfg("internimage_xl_22k_192to384.pth", 384, num_classes=21841),
        "internimage_h.joint_in22k_ft_in1k_640": _cfg("internimage_h_22kto1k_640.pth", 640),
        "internimage_h.joint_in22k_384": _cfg(
            "internimage_h_jointto22k_384.pth", 384, num_classes=21841
        ),
        "internimage_g.joint_in22k_ft_in1k_512": _cfg("internimage_g_22kto1k_512.pth", 512),
        "internimage_g.joint_in22k_384": _cfg(
            "internimage_g_pretrainto22k_384.pth", 384, num_classes=21841
        ),
        "flash_internimage_t.in1k_224": _cfg("flash_intern_image_t_1k_224.pth", **FLASH),
        "flash_internimage_s.in1k_224": _cfg("flash_intern_image_s_1k_224.pth", **FLASH),
        "flash_internimage_b.in1k_224": _cfg("flash_intern_image_b_1k_224.pth", **FLASH),
        "flash_internimage_l.in22k_ft_in1k_384": _cfg(
            "flash_internimage_l_22kto1k_384.pth", 384, **FLASH
        ),
        "flash_internimage_l.in22k_384": _cfg(
            "flash_intern_image_l_22k_384.pth", 384, num_classes=21841, **FLASH
        ),
    }
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn an official state dict into one of ``model`` (hook of timm's weight loading)."""
    return convert_state_dict(state_dict, model)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> InternImage:
    if pretrained and not kwargs.get("cache_dir"):
        kwargs["pretrained_cfg_overlay"] = _with_file(variant, kwargs)
    return build_model_with_cfg(
        InternImage,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**ARCHITECTURES[variant], **kwargs},
    )


def _with_file(variant: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Overlay of the configuration that names the downloaded file.

    timm itself would retry for half a minute without a connection, and end in a long traceback.

    Raises:
        UserError: If the file is not in the cache and cannot be downloaded.
    """
    overlay = kwargs.get("pretrained_cfg_overlay")
    config = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    repo, filename = config.hf_hub_id, config.hf_hub_filename
    if repo not in (HUB_REPO, FLASH_REPO) or filename is None:
        return overlay
    if config.file or config.state_dict or config.source:  # timm prefers these
        return overlay
    path = download(repo, filename)
    return {**(overlay or {}), "file": str(path), "custom_load": True}


@register_model
def internimage_nano(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-nano: under 5 M parameters, for laptops and tests; no published weights."""
    return _create("internimage_nano", pretrained, kwargs)


@register_model
def internimage_t(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-T, 30 M parameters."""
    return _create("internimage_t", pretrained, kwargs)


@register_model
def internimage_s(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-S, 50 M parameters."""
    return _create("internimage_s", pretrained, kwargs)


@register_model
def internimage_b(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-B, 97 M parameters."""
    return _create("internimage_b", pretrained, kwargs)


@register_model
def internimage_l(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-L, 223 M parameters."""
    return _create("internimage_l", pretrained, kwargs)


@register_model
def internimage_xl(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-XL, 335 M parameters."""
    return _create("internimage_xl", pretrained, kwargs)


@register_model
def internimage_h(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-H, 1.09 B parameters."""
    return _create("internimage_h", pretrained, kwargs)


@register_model
def internimage_g(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-G, 3.08 B parameters."""
    return _create("internimage_g", pretrained, kwargs)


@register_model
def flash_internimage_t(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-T, 30 M parameters."""
    return _create("flash_internimage_t", pretrained, kwargs)


@register_model
def flash_internimage_s(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-S, 50 M parameters."""
    return _create("flash_internimage_s", pretrained, kwargs)


@register_model
def flash_internimage_b(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-B, 97 M parameters."""
    return _create("flash_internimage_b", pretrained, kwargs)


@register_model
def flash_internimage_l(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-L, 223 M parameters."""
    return _create("flash_internimage_l", pretrained, kwargs)
