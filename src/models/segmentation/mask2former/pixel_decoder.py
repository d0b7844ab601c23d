"""Pixel decoder: deformable attention over three stages, fused with the finest feature map.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022 (arXiv 2112.01527), section 3.2.1, with the deformable encoder of Zhu et al., "Deformable
DETR", ICLR 2021. Order of operations, attribute names and initialisation as in the official
InternImage models (mmdet 2.28).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.conv import Conv2d
from src.models.layers.deformable_encoder import Encoder, LayerSizes
from src.models.layers.linear import Init
from src.models.layers.norm import GroupNorm
from src.models.layers.transformer import sine_positions
from src.models.segmentation.head import resize
from src.types import Size


class NormedConv(nn.Module):
    """Convolution, GroupNorm, optional ReLU; parameters ``conv.*`` and ``gn.*``.

    Args:
        in_channels: Input width.
        out_channels: Output width, a multiple of ``groups``.
        kernel_size: Odd side of the kernel.
        groups: Groups of the norm.
        init: Initial weights of the convolution.
        bias: Whether the convolution has a bias.
        relu: Whether to end with a ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        *,
        init: Init = "lecun",
        bias: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, init, bias=bias)
        self.gn = GroupNorm(groups, out_channels)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C', H, W)``."""
        out: Tensor = self.act(self.gn(self.conv(x)))
        return out


class PixelDecoder(nn.Module):
    """Feature maps of equal width at strides 32, 16 and 8, and per-pixel features at stride 4.

    Args:
        in_channels: Width of each feature map, finest first. The first one is added after a
            convolution, the others go through the encoder.
        channels: Width of all outputs, a multiple of 4, ``heads`` and ``norm_groups``.
        num_layers: Encoder layers; official: 6.
        heads: Attention heads.
        points: Sampling locations per head and feature map.
        hidden_channels: Width inside the feed-forward layers.
        norm_groups: Groups of the GroupNorms; official: 32.

    Raises:
        UserError: If the widths do not fit together, or there are fewer than two feature maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 1024,
        num_layers: int = 6,
        heads: int = 32,
        points: int = 4,
        hidden_channels: int = 4096,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise UserError(
                "The pixel decoder needs feature maps of at least two stages, got "
                f"{list(in_channels)}."
            )
        if channels % 4 or channels % norm_groups or channels == norm_groups:
            raise UserError(
                f"The pixel decoder needs channels to be a multiple of 4 and a larger multiple of "
                f"norm_groups, got channels={channels} and norm_groups={norm_groups}."
            )
        finest, *encoded = in_channels
        self.channels = channels
        self.input_convs = nn.ModuleList(
            NormedConv(width, channels, 1, norm_groups, init="xavier", bias=True)
            for width in reversed(encoded)
        )
        layer = LayerSizes(channels, heads, len(encoded), points, hidden_channels)
        self.encoder = Encoder(num_layers, layer)
        self.level_encoding = nn.Embedding(len(encoded), channels)
        self.lateral_convs = nn.ModuleList([NormedConv(finest, channels, 1, norm_groups)])
        self.output_convs = nn.ModuleList(
            [NormedConv(channels, channels, 3, norm_groups, relu=True)]
        )
        self.mask_feature = Conv2d(channels, channels, 1, "lecun")

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Encode the coarser feature maps and fuse them with the finest.

        Args:
            features: Feature maps of all stages, finest first, ``(N, C_i, H_i, W_i)``.

        Returns:
            Features of each pixel, ``(N, channels, H_0, W_0)``, and the encoded feature maps,
            coarsest first, ``(N, channels, H_i, W_i)``.
        """
        finest, *coarser = features
        memory = self.encode(coarser[::-1])
        lateral: Tensor = self.lateral_convs[0](finest)
        size = (lateral.shape[-2], lateral.shape[-1])
        merged: Tensor = self.output_convs[0](lateral + resize(memory[-1], size))
        return self.mask_feature(merged), memory

    def encode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encode the pixels of several feature maps, coarsest first, together."""
        levels = [conv(x) for conv, x in zip(self.input_convs, features, strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)  # (N, S, C)
        positions = torch.cat(
            [
                sine_positions(size, self.channels, tokens) + level
                for size, level in zip(sizes, self.level_encoding.weight, strict=True)
            ]
        )
        references = torch.cat([pixel_centers(size, tokens) for size in sizes])
        references = references[None, :, None].expand(tokens.shape[0], -1, len(sizes), -1)
        tokens = self.encoder(tokens, positions, references, sizes)
        encoded = tokens.split([height * width for height, width in sizes], dim=1)
        return [
            level.transpose(1, 2).unflatten(2, size)
            for level, size in zip(encoded, sizes, strict=True)
        ]


def pixel_centers(size: Size, like: Tensor) -> Tensor:
    """Centres ``(x, y)`` of the pixels of a feature map in [0, 1], ``(height * width, 2)``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows, columns = (
        (torch.arange(side, dtype=dtype, device=like.device) + 0.5) / side for side in size
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
