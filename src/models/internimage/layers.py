"""Layers of InternImage: norms, residual connection, MLP.

Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023 (arXiv 2211.05778); initial values are those of the official code. Feature
maps are channels-last, ``(N, H, W, C)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.linear import Linear, linear, linear_gelu, uses_onednn
from src.models.layers.norm import LayerNorm, has_hooks, is_exact_gelu
from src.models.layers.precision import autocast_dtype, without_autocast
from src.ops import cpu_linear, fused

LAYER_NORM_EPS = 1e-6


def layer_norm(channels: int) -> LayerNorm:
    """LayerNorm over the last axis with the epsilon of every InternImage norm, 1e-6."""
    return LayerNorm(channels, eps=LAYER_NORM_EPS)


def check_batch_norm(x: Tensor) -> None:
    """Refuse a feature map ``(N, C, h, w)`` that batch norm cannot normalise in training.

    Raises:
        UserError: If there is a single value per channel.
    """
    if x.numel() == x.shape[1]:
        raise UserError(
            "Batch norm cannot train on a single value per channel: the step has one image whose"
            " last feature map is 1 x 1. Set data.batch_size to 2 or more, or use larger images"
            " (data.image_size)."
        )


class ChannelsLastBatchNorm(nn.Module):
    """Batch norm of feature maps ``(N, H, W, C)``, computed in the dtype of its parameters.

    The layer ``bn`` is PyTorch's own, so that Lightning's ``sync_batchnorm`` can replace it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``; under autocast in the autocast dtype.

        Raises:
            UserError: In training, if there is one value per channel.
        """
        dtype = autocast_dtype(x.device.type) or x.dtype
        image_like = x.to(self.bn.weight.dtype).permute(0, 3, 1, 2)  # (N, C, H, W)
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if self.training and type(self.bn) is nn.BatchNorm2d and not is_traced:
            check_batch_norm(image_like)
        with without_autocast(x.device.type):
            out: Tensor = self.bn(image_like)
        return out.permute(0, 2, 3, 1).to(dtype)


def replace_layer_norms(module: nn.Module) -> None:
    """Replace every `LayerNorm` of a module by a `ChannelsLastBatchNorm` of the same width."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LayerNorm):
                setattr(parent, name, ChannelsLastBatchNorm(child.normalized_shape[0]))


def add_branch(
    x: Tensor, branch: Tensor, gamma: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Residual connection: ``x + gamma * keep * branch`` in one pass, in the dtype of ``x``.

    Args:
        x: Feature map of shape ``(N, H, W, C)``.
        branch: Output of the branch, of the same shape.
        gamma: Layer scale ``(C,)``; ``None`` is 1.
        keep: Factor of each sample, ``(N, 1, 1, 1)``; ``None`` is 1.
    """
    scale = gamma if keep is None else keep if gamma is None else gamma * keep
    if scale is None:
        return x + branch
    return torch.addcmul(x, branch.to(x.dtype), scale.to(x.dtype))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them, on the last axis.

    Args:
        channels: Input and output width.
        hidden_channels: Width between the two layers.
        drop_rate: Dropout probability after each layer, in [0, 1).
        fc2_bias: Whether the second layer has a bias.
    """

    def __init__(
        self, channels: int, hidden_channels: int, drop_rate: float = 0.0, fc2_bias: bool = True
    ) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels, init="trunc_normal")
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_channels, channels, init="trunc_normal", bias=fc2_bias)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``; one operator where there is a kernel for its training."""
        fc1, fc2 = self.fc1, self.fc2
        if self._is_fused(x):
            return cpu_linear.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        out: Tensor = self.drop(fc2(self.drop(self._hidden(x))))
        return out

    def _is_fused(self, x: Tensor) -> bool:
        """Whether all layers are one operator: there are no layers of others and no hooks."""
        fc1, fc2, drop = self.fc1, self.fc2, self.drop
        return (
            torch.is_grad_enabled()
            and autocast_dtype(x.device.type) is None
            and type(fc1) is type(fc2) is Linear
            and all(map(_is_linear, (fc1, fc2)))
            and is_exact_gelu(self.act)
            and not (drop.training and drop.p > 0)
            and not has_hooks(fc1, self.act, fc2, drop)
            and cpu_linear.is_available(x, fc1.out_features)
            and fc1.weight.dtype == torch.float32  # last: tracing records what is read
        )

    def _hidden(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., hidden_channels)``; GELU is fused where there is a kernel for it."""
        fc1, act = self.fc1, self.act
        if _is_linear(fc1) and is_exact_gelu(act) and not has_hooks(fc1, act):
            if not torch.is_grad_enabled() and uses_onednn(x):
                return linear_gelu(x, fc1.weight, fc1.bias)
            if fused.is_available(x):
                return fused.bias_gelu(linear(x, fc1.weight), fc1.bias)
        out: Tensor = act(fc1(x))
        return out


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer computes what `Linear` does; a parametrized one has a type of its own."""
    return type(layer).forward is Linear.forward and "forward" not in layer.__dict__
