"""The DCNv4 layer: deformable convolution v4 with its projections.

Source: Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for
Vision Applications", CVPR 2024, section 3 (arXiv 2401.06197); parameter names and initial values
are those of the official code (OpenGVLab/DCNv4, MIT). Feature maps are channels-last,
``(N, H, W, C)``. The operator itself is ``src.ops.dcnv4``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.mixer import SpatialMixer
from src.models.layers.channels_last import conv_nhwc
from src.models.layers.linear import Linear
from src.ops import dcnv4, dcnv4_columns


class DCNv4(SpatialMixer):
    """Deformable convolution v4 with its projections (paper, section 3.1).

    It differs from `DCNv3` in this: the weights of the sampling points are not normalised by a
    softmax; offsets and weights are one layer, whose output rows the operator reads as they are;
    the depthwise convolution before that layer is optional and has neither norm nor activation; the
    centre scale is computed from the output of the operator.

    Initially offsets and weights are zero, and so is the output, up to the bias.

    Args:
        channels: Width ``C`` of the feature map, a multiple of ``groups``.
        groups: Number of groups ``G`` with their own offsets and weights.
        kernel_size: Odd side of the sampling grid; 3 in the official code.
        dw_kernel_size: Odd side of the depthwise convolution before ``offset_mask``; ``None`` is no
            such convolution.
        offset_scale: Factor on the grid and on the offsets, in pixels.
        output_bias: Whether ``output_proj`` has a bias.
        center_feature_scale: Blend the output with the projected input by a learned gate per group.
        remove_center: Leave out the centre point of the grid.
        without_pointwise: Leave out ``value_proj`` and ``output_proj``.

    Raises:
        UserError: If ``channels`` is not a multiple of ``groups`` or a kernel size is even.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        offset_scale: float = 1.0,
        output_bias: bool = True,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        without_pointwise: bool = False,
    ) -> None:
        super().__init__()
        if channels % groups:
            raise UserError(
                f"DCNv4 needs channels to be a multiple of groups, got channels={channels} and "
                f"groups={groups}; change `groups` or `channels` of that stage."
            )
        for name, size in (("kernel_size", kernel_size), ("dw_kernel_size", dw_kernel_size)):
            if size is not None and (size < 1 or size % 2 == 0):
                raise UserError(f"DCNv4 needs an odd positive {name}, got {size}; use 3, 5 or 7.")
        self.channels = channels
        self.groups = groups
        self.kernel_size = kernel_size
        self.offset_scale = offset_scale
        self.remove_center = remove_center
        self.num_points = kernel_size**2 - int(remove_center)
        self.center_feature_scale_proj_weight: nn.Parameter | None = None
        self.center_feature_scale_proj_bias: nn.Parameter | None = None
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(groups))
        self.offset_mask_dw: nn.Conv2d | None = None
        if dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv2d(
                channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels
            )
        columns = dcnv4_columns(groups, kernel_size, remove_center)
        self.offset_mask = Linear(channels, columns, init="zeros")
        self.value_proj: nn.Module = nn.Identity()
        self.output_proj: nn.Module = nn.Identity()
        if not without_pointwise:
            self.value_proj = Linear(channels, channels, init="xavier")
            self.output_proj = Linear(channels, channels, init="xavier", bias=output_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the gate logits, so the initial gate is one half; submodules reset themselves."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        values = self.value_proj(x)
        out = dcnv4(
            values,
            self._rows(x),
            groups=self.groups,
            kernel_size=self.kernel_size,
            padding=self.kernel_size // 2,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        if self.center_feature_scale_proj_weight is not None:
            out = self._blend_center(out, values)
        result: Tensor = self.output_proj(out)
        return result

    def points_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``(N, H, W, G, P, 2)`` and weights ``(N, H, W, G, P)`` for an input."""
        points = self.num_points
        used = self._rows(x)[..., : 3 * self.groups * points]
        grouped = used.unflatten(-1, (self.groups, 3 * points))
        return grouped[..., : 2 * points].unflatten(-1, (points, 2)), grouped[..., 2 * points :]

    def _rows(self, x: Tensor) -> Tensor:
        guide = x if self.offset_mask_dw is None else conv_nhwc(self.offset_mask_dw, x)
        rows: Tensor = self.offset_mask(guide)
        return rows

    def _blend_center(self, out: Tensor, values: Tensor) -> Tensor:
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        assert weight is not None
        gate = F.linear(out, weight, bias).sigmoid()  # (N, H, W, G)
        grouped = (*out.shape[:3], self.groups, self.channels // self.groups)
        blended = torch.lerp(
            out.view(grouped), values.to(out.dtype).view(grouped), gate.unsqueeze(-1).to(out.dtype)
        )
        return blended.view_as(out)

    def extra_repr(self) -> str:
        """Arguments shown by ``print``."""
        return (
            f"channels={self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}"
        )
