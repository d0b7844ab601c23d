"""The DCNv3 layer: deformable convolution v3 with its projections.

Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023, section 3 (arXiv 2211.05778); initial values are those of the official
code. Feature maps are channels-last, ``(N, H, W, C)``. The operator itself is ``src.ops.dcnv3``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.layers import layer_norm
from src.models.internimage.mixer import SpatialMixer
from src.models.layers.channels_last import conv_nhwc
from src.models.layers.linear import Linear, linear
from src.models.layers.norm import norm_gelu
from src.models.weights.match import Match, Renames
from src.ops import dcnv3

Product = Callable[[Tensor], Tensor]
"""A linear layer of the last axis."""


class DCNv3(SpatialMixer):
    """Deformable convolution v3 with its projections (paper, equation 2 and figure 3).

    The values come from ``input_proj(x)``; offsets, mask logits and the optional centre scale come
    from a depthwise convolution of the *unprojected* input. ``offset`` and ``mask`` are two
    parameters (they have different learning-rate rules) but one matrix product: their weights are
    concatenated and the operator reads its two arguments as strided views of the result. The two
    submodules are not called, so their forward hooks do not run; training keeps the concatenated
    copy.

    Args:
        channels: Width ``C`` of the feature map, a multiple of ``groups``.
        groups: Number of groups ``G`` with their own offsets and mask.
        kernel_size: Odd side of the sampling grid.
        dw_kernel_size: Odd side of the depthwise convolution; ``None`` means ``kernel_size``.
        offset_scale: Factor on the grid and on the offsets, in pixels.
        center_feature_scale: Blend the output with the projected input by a learned gate per group.
        remove_center: Leave out the centre point of the grid.

    Raises:
        UserError: If ``channels`` is not a multiple of ``groups`` or a kernel size is even.
    """

    official_renames: ClassVar[Renames] = (
        (r"^dw_conv\.", "dw_conv.0."),
        (r"^dw_norm\.", "dw_conv.1.1."),
    )

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__()
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        if channels % groups:
            raise UserError(
                f"DCNv3 needs channels to be a multiple of groups, got channels={channels} and "
                f"groups={groups}; change `groups` or `channels` of that stage."
            )
        for name, size in (("kernel_size", kernel_size), ("dw_kernel_size", dw_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise UserError(f"DCNv3 needs an odd positive {name}, got {size}; use 3, 5 or 7.")
        self.channels = channels
        self.groups = groups
        self.kernel_size = kernel_size
        self.offset_scale = offset_scale
        self.remove_center = remove_center
        self.num_points = kernel_size**2 - int(remove_center)
        self.dw_conv = nn.Conv2d(
            channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels
        )
        self.dw_norm = layer_norm(channels)
        self.act = nn.GELU()
        # Zero offsets and mask logits: at first every layer averages over a regular grid.
        self.offset = Linear(channels, groups * self.num_points * 2, init="zeros")
        self.mask = Linear(channels, groups * self.num_points, init="zeros")
        self.input_proj = Linear(channels, channels, init="xavier")
        self.output_proj = Linear(channels, channels, init="xavier")
        self.center_feature_scale_proj_weight: nn.Parameter | None = None
        self.center_feature_scale_proj_bias: nn.Parameter | None = None
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the gate logits, so the initial gate is one half; submodules reset themselves."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        return self.mix(x, self.input_proj, self._points, self.output_proj)

    def mix(self, x: Tensor, input_proj: Product, points: Product, output_proj: Product) -> Tensor:
        """Forward pass with given linear layers.

        Args:
            x: Feature map of shape ``(N, H, W, C)``.
            input_proj: Projection of the values.
            points: Offsets and mask logits, one after the other on the last axis, see `points`.
            output_proj: Projection of the result.
        """
        values = input_proj(x)
        guide = norm_gelu(self.dw_norm, self.act, conv_nhwc(self.dw_conv, x))
        offset, mask_logits = self._split(points(guide))
        out = dcnv3(
            values,
            offset,
            mask_logits,
            groups=self.groups,
            kernel_size=self.kernel_size,
            padding=self.kernel_size // 2,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            mask_softmax=True,
        )
        if self.center_feature_scale_proj_weight is not None:
            out = self._blend_center(out, values, guide)
        return output_proj(out)

    def points(self) -> tuple[Tensor, Tensor]:
        """Weight ``(G * K * 3, C)`` and bias of the product for offsets and mask logits."""
        weight = torch.cat([self.offset.weight, self.mask.weight])
        return weight, torch.cat([self.offset.bias, self.mask.bias])

    def _points(self, guide: Tensor) -> Tensor:
        return linear(guide, *self.points())

    def _split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        offset, mask_logits = points.split(
            [self.offset.out_features, self.mask.out_features], dim=-1
        )
        return offset, mask_logits

    def _offset_and_mask(self, guide: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self._points(guide))

    def _blend_center(self, out: Tensor, values: Tensor, guide: Tensor) -> Tensor:
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        assert weight is not None
        gate = linear(guide, weight, bias).sigmoid()  # (N, H, W, G)
        grouped = (*out.shape[:3], self.groups, self.channels // self.groups)
        blended = torch.lerp(
            out.view(grouped), values.view(grouped), gate.unsqueeze(-1).to(out.dtype)
        )
        return blended.view_as(out)

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Drop the rows of the centre point if this layer has none (official loader)."""
        if not self.remove_center:
            return
        points = self.kernel_size**2
        for part, per_point in (("offset", 2), ("mask", 1)):
            rows = torch.arange(self.groups * points * per_point)
            kept = rows[rows // per_point % points != points // 2]
            for key in (f"{prefix}{part}.weight", f"{prefix}{part}.bias"):
                if key in match.state and len(match.state[key]) == len(rows):
                    match.state[key] = match.state[key][kept]
                    match.note(
                        f"{match.source} samples the centre; its rows for the centre are left out."
                    )

    def extra_repr(self) -> str:
        """Arguments shown by ``print``."""
        return (
            f"channels={self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}"
        )
