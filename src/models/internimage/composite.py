"""CB-InternImage: two InternImages, the second helped by all maps of the first.

Source: Liang et al., "CBNet: A Composite Backbone Network Architecture for Object Detection", TIP
2022 (arXiv 2107.00420), dense higher-level composition; details and parameter names are those of
the official CB-InternImage-H.

Before stage ``i`` of the second, ``x = x + gamma_i * sum of resized(linear_ij(first_j))`` over the
stages ``j >= i`` of the first (``linear_ii`` is the identity). The scale ``gamma_i`` starts at 0
and counts rounded to half precision, as officially, since released weights were trained so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.internimage.backbone import InternImageBackbone


class CBInternImageBackbone(nn.Module):
    """Two backbones of one kind; the second has no stem and starts from the first's.

    Args:
        backbone: Makes one backbone; its ``out_indices`` are the stages to return.
    """

    def __init__(self, backbone: Callable[[], InternImageBackbone] = InternImageBackbone) -> None:
        super().__init__()
        first, second = backbone(), backbone()
        del second.patch_embed
        widths = first.stage_channels
        for i, width in enumerate(widths):
            second.register_parameter(f"gamma{i}", nn.Parameter(torch.empty(width)))
        self.cb_modules = nn.ModuleList([first, second])
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if j == i else nn.Conv2d(widths[j], widths[i], 1)
                for j in range(i, len(widths))
            )
            for i in range(len(widths))
        )
        self.depths = first.depths
        self.out_channels = [widths[i] for i in first.out_indices]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the scales, so that the second backbone starts on its own."""
        for parameter in self.cb_modules[1].parameters(recurse=False):
            nn.init.zeros_(parameter)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch recomputation of the blocks in the backward pass on or off."""
        for module in self.cb_modules:
            cast("InternImageBackbone", module).set_grad_checkpointing(enable)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the maps of both backbones.

        Args:
            image: Normalised images ``(N, 3, H, W)``.

        Returns:
            For each backbone its maps ``(N, C_i, H_i, W_i)``.
        """
        first, second = cast("tuple[InternImageBackbone, InternImageBackbone]", self.cb_modules)
        stem = first.pos_drop(first.patch_embed(image))  # (N, H, W, C)
        x, maps = stem, []
        for stage in first.levels:
            out, x = stage(x)
            maps.append(out.permute(0, 3, 1, 2))  # (N, C, H, W)
        x, composed = stem, []
        for i, stage in enumerate(second.levels):
            gamma = getattr(second, f"gamma{i}")
            help_ = self._compose(i, maps).permute(0, 2, 3, 1)  # (N, H, W, C)
            out, x = stage(x + _half(gamma) * help_)
            composed.append(out.permute(0, 3, 1, 2))  # (N, C, H, W)
        indices = first.out_indices
        return [maps[i] for i in indices], [composed[i] for i in indices]

    def _compose(self, i: int, maps: list[Tensor]) -> Tensor:
        """Maps of the stages from ``i`` on at the width and size of stage ``i``."""
        total, size = maps[i], maps[i].shape[2:]
        linears = list(cast("nn.ModuleList", self.cb_linears[i]))
        for linear, level in zip(linears[1:], maps[i + 1 :], strict=True):
            total = total + F.interpolate(linear(level), size=size, mode="nearest")
        return total


def _half(gamma: Tensor) -> Tensor:
    """Round the value to half precision but not the gradient, which could vanish there."""
    return gamma + (gamma.half().to(gamma.dtype) - gamma).detach()
