"""LayerNorm, alone and after a depthwise convolution, of channels-last feature maps on the CPU.

For inference: the operators have no gradients. The compiled library has kernels for float32 and
bfloat16 values; everywhere else, PyTorch's own functions compute the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused  # noqa: F401  defines internimage::layer_norm

torch.library.define(
    "internimage::cpu_depthwise_norm_gelu",
    "(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps)"
    " -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, gelu: bool = False
) -> Tensor:
    """LayerNorm over the last axis, and GELU if wanted, computed in float32.

    Args:
        x: Contiguous values of shape ``(..., C)``, float32 or bfloat16, on the CPU.
        weight: Scale, ``(C,)``, float32.
        bias: Shift, ``(C,)``, float32.
        eps: Added to the variance.
        gelu: Apply exact GELU to the result.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    out: Tensor = torch.ops.internimage.layer_norm.default(x, weight, bias, eps, gelu)
    return out


def depthwise_norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> Tensor:
    """Depthwise convolution of stride 1 that keeps the size, then LayerNorm, then exact GELU.

    Everything between reading ``x`` and writing the result is float32.

    Args:
        x: Contiguous feature map of shape ``(N, H, W, C)``, float32 or bfloat16, on the CPU.
        weight: Kernels of an odd side ``k``, ``(k, k, C)``, float32, contiguous.
        bias: Bias of the convolution, ``(C,)``, float32.
        norm_weight: Scale of LayerNorm, ``(C,)``, float32.
        norm_bias: Shift of LayerNorm, ``(C,)``, float32.
        eps: Added to the variance.

    Returns:
        Feature map of the shape and dtype of ``x``.
    """
    out: Tensor = torch.ops.internimage.cpu_depthwise_norm_gelu.default(
        x, weight, bias, norm_weight, norm_bias, eps
    )
    return out


@torch.library.register_kernel("internimage::layer_norm", None)
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    out = F.layer_norm(x.float(), weight.shape, weight, bias, eps)
    return (F.gelu(out) if gelu else out).to(x.dtype)


@torch.library.register_kernel("internimage::cpu_depthwise_norm_gelu", None)
def _depthwise_norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> Tensor:
    side, _, channels = weight.shape
    kernels = weight.permute(2, 0, 1).unsqueeze(1)  # (C, 1, k, k)
    out = F.conv2d(
        x.float().permute(0, 3, 1, 2), kernels, bias, padding=side // 2, groups=channels
    ).permute(0, 2, 3, 1)
    out = F.gelu(F.layer_norm(out, norm_weight.shape, norm_weight, norm_bias, eps))
    return out.to(x.dtype).contiguous()


@torch.library.register_fake("internimage::cpu_depthwise_norm_gelu")
def _fake(x: Tensor, *args: Tensor | float) -> Tensor:
    return torch.empty_like(x)
