"""The operators with kernels of their own that a network uses."""

from __future__ import annotations

from torch import nn

from src.models import DCNv3, DCNv4
from src.models.layers.deformable_attention import MultiScaleDeformableAttention

_NAMES = {DCNv3: "DCNv3", DCNv4: "DCNv4", MultiScaleDeformableAttention: "ms_deform_attn"}


def operators_of(network: nn.Module) -> list[str]:
    """Names of the operators: ``DCNv3``, ``DCNv4``, ``ms_deform_attn``."""
    layers = list(network.modules())
    return [name for kind, name in _NAMES.items() if any(isinstance(x, kind) for x in layers)]
