"""CBNet backbone: a lead InternImage that fuses the features of an assisting one.

Source: Liang et al., "CBNet: A Composite Backbone Network Architecture for Object Detection", TIP
2022 (arXiv 2107.00420), dense higher-level composition; details and parameter names are those of
the official CB-InternImage-H.

Before stage ``i`` of the lead, ``x = x + gamma_i * sum of resized(linear_ij(assist_j))`` over the
stages ``j >= i`` of the assisting backbone (``linear_ii`` is the identity). The scale ``gamma_i``
is 0 initially and rounded to half precision in the forward pass, to match the released weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.internimage.backbone import InternImageBackbone


class CBInternImageBackbone(nn.Module):
    """Two backbones of one architecture; the lead has no stem and uses that of the assisting one.

    Args:
        backbone: Makes one backbone; its ``out_indices`` are the stages to return.
    """

    def __init__(self, backbone: Callable[[], InternImageBackbone] = InternImageBackbone) -> None:
        super().__init__()
        assist, lead = backbone(), backbone()
        del lead.patch_embed
        widths = assist.stage_channels
        for i, width in enumerate(widths):
            lead.register_parameter(f"gamma{i}", nn.Parameter(torch.empty(width)))
        self.cb_modules = nn.ModuleList([assist, lead])
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if j == i else nn.Conv2d(widths[j], widths[i], 1)
                for j in range(i, len(widths))
            )
            for i in range(len(widths))
        )
        self.depths = assist.depths
        self.out_channels = [widths[i] for i in assist.out_indices]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the scales, so that the lead backbone initially ignores the assisting one."""
        for parameter in self.cb_modules[1].parameters(recurse=False):
            nn.init.zeros_(parameter)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing of the blocks on or off."""
        for module in self.cb_modules:
            cast("InternImageBackbone", module).set_grad_checkpointing(enable)

    def freeze(self, stages: int | None = None) -> None:
        """Freeze the stem and the first stages of both backbones, and what connects these stages.

        Args:
            stages: Number of stages; ``None`` freezes everything.

        Raises:
            UserError: If there are fewer stages.
        """
        for module in self.cb_modules:
            cast("InternImageBackbone", module).freeze(stages)
        for i, linears in enumerate(self.cb_linears):
            if stages is None or i < stages:
                linears.requires_grad_(False)
                getattr(self.cb_modules[1], f"gamma{i}").requires_grad_(False)

    def add_low_rank(self, rank: int) -> None:
        """Train low-rank updates of both backbones instead of the weights.

        Args:
            rank: Rank of the updates, at least 1.

        Raises:
            UserError: If all stages are frozen.
        """
        self.requires_grad_(False)
        for module in self.cb_modules:
            cast("InternImageBackbone", module).add_low_rank(rank)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the feature maps of both backbones.

        Args:
            image: Normalised images ``(N, 3, H, W)``.

        Returns:
            Feature maps ``(N, C_i, H_i, W_i)`` of the assisting and of the lead backbone.
        """
        assist, lead = cast("tuple[InternImageBackbone, InternImageBackbone]", self.cb_modules)
        stem = assist.pos_drop(assist.patch_embed(image))  # (N, H, W, C)
        x, assist_features = stem, []
        for stage in assist.levels:
            out, x = stage(x)
            assist_features.append(out.permute(0, 3, 1, 2))  # (N, C, H, W)
        x, lead_features = stem, []
        for i, stage in enumerate(lead.levels):
            gamma = getattr(lead, f"gamma{i}")
            fused = self._fuse(i, assist_features).permute(0, 2, 3, 1)  # (N, H, W, C)
            out, x = stage(x + _half(gamma) * fused)
            lead_features.append(out.permute(0, 3, 1, 2))  # (N, C, H, W)
        indices = assist.out_indices
        return [assist_features[i] for i in indices], [lead_features[i] for i in indices]

    def _fuse(self, i: int, features: list[Tensor]) -> Tensor:
        """Sum of the features of the stages from ``i`` on, at the width and size of stage ``i``."""
        total, size = features[i], features[i].shape[2:]
        linears = list(cast("nn.ModuleList", self.cb_linears[i]))
        for linear, level in zip(linears[1:], features[i + 1 :], strict=True):
            total = total + F.interpolate(linear(level), size=size, mode="nearest")
        return total


def _half(gamma: Tensor) -> Tensor:
    """Round the value to half precision, but not the gradient, which could underflow."""
    return gamma + (gamma.half().to(gamma.dtype) - gamma).detach()
