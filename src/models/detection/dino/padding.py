"""Padding of a batch on feature maps of any size, and coordinates of pixels in their image.

Rules of Deformable DETR as the official DINO uses them (mmdet 2.28). Coordinates are in [0, 1] of
the image without padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.models.layers.transformer import POSITION_EPS, sine_encoding, width_and_height
from src.types import Size


@dataclass(frozen=True)
class Padding:
    """Padding of a batch on every feature map.

    Attributes:
        sizes: Height and width of each feature map.
        masks: True where a pixel is padding, ``(N, H, W)`` for each feature map.
        ratios: Share of each feature map that is image, ``(N, levels, 2)`` as width, height.
    """

    sizes: list[Size]
    masks: list[Tensor]
    ratios: Tensor

    @property
    def tokens(self) -> Tensor:
        """Padding of all feature maps, ``(N, S)``."""
        return torch.cat([mask.flatten(1) for mask in self.masks], dim=1)

    def references(self) -> Tensor:
        """Centre of each pixel of each feature map, on each of them, ``(N, S, levels, 2)``."""
        centers = [
            _centers(shape, self.ratios) / self.ratios[:, None, i]
            for i, shape in enumerate(self.sizes)
        ]
        return torch.cat(centers, dim=1)[:, :, None] * self.ratios[:, None]

    def initial_boxes(self, size: float = 0.05) -> Tensor:
        """A box around each pixel: centre and size, ``(N, S, 4)``; sides double with each level."""
        boxes = []
        for i, shape in enumerate(self.sizes):
            valid = ~self.masks[i]
            extent = torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], dim=1)  # (N, 2)
            pixels = width_and_height(shape, self.ratios)
            centers = _centers(shape, self.ratios) * pixels / extent[:, None]
            boxes.append(torch.cat([centers, torch.full_like(centers, size * 2**i)], dim=2))
        return torch.cat(boxes, dim=1)


def find_padding(image_size: Size, sizes: Sequence[Size], features: Sequence[Tensor]) -> Padding:
    """Mark the padding of each feature map.

    Args:
        image_size: Height and width of the batch.
        sizes: Height and width of each image without padding.
        features: Feature maps ``(N, C, H, W)``.

    Returns:
        A pixel of a feature map is padding if the pixel of the image at its upper left corner is.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in features]
    like = features[0]
    masks = [_mask(image_size, sizes, shape, like.device) for shape in shapes]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    ratios = [
        torch.stack([(~mask[:, 0]).to(dtype).mean(1), (~mask[:, :, 0]).to(dtype).mean(1)], dim=1)
        for mask in masks
    ]
    return Padding(shapes, masks, torch.stack(ratios, dim=1))


def same_padding(image_size: Size, size: Size, features: Sequence[Tensor]) -> Padding:
    """Result of `find_padding` if all images have one size, which may be symbolic.

    Args:
        image_size: Height and width of the batch.
        size: Height and width of every image without padding.
        features: Feature maps ``(N, C, H, W)``, whose sizes stay free where a graph is recorded.
    """
    like = features[0]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shapes = [(level.shape[2], level.shape[3]) for level in features]
    masks, ratios = [], []
    for shape in shapes:
        rows, columns = (
            _corners(image_size, shape, axis, like.device) < size[axis] for axis in range(2)
        )
        masks.append((~(rows[:, None] & columns)).expand(like.shape[0], -1, -1))
        ratios.append(torch.stack([columns.to(dtype).mean(), rows.to(dtype).mean()]))
    return Padding(shapes, masks, torch.stack(ratios).expand(like.shape[0], -1, -1))


def _mask(image_size: Size, sizes: Sequence[Size], shape: Size, device: torch.device) -> Tensor:
    inside = []
    for axis in range(2):
        corners = _corners(image_size, shape, axis, device)
        ends = torch.tensor([size[axis] for size in sizes], device=device)
        inside.append(corners < ends[:, None])  # (N, H) and (N, W)
    return ~(inside[0][:, :, None] & inside[1][:, None])


def _corners(image_size: Size, shape: Size, axis: int, device: torch.device) -> Tensor:
    """Row or column of the image at the upper left corner of each pixel of a feature map."""
    return torch.arange(shape[axis], device=device) * image_size[axis] // shape[axis]


def _centers(shape: Size, like: Tensor) -> Tensor:
    """Centres ``(x, y)`` of the pixels of a feature map in [0, 1], ``(1, H * W, 2)``."""
    rows, columns = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in shape
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def padded_positions(mask: Tensor, channels: int, temperature: float, like: Tensor) -> Tensor:
    """Sine encoding of the position of every pixel, counted over pixels that are not padding.

    Args:
        mask: True where a pixel is padding, ``(N, H, W)``.
        channels: Width of the result, a multiple of 4.
        temperature: Ratio of the highest and (nearly) the lowest frequency.
        like: Tensor whose dtype counts.

    Returns:
        ``(N, H * W, channels)``, at least float32: first the row, then the column, each counted
        from 1 and scaled so that the last one of the image is at ``2 pi``.
    """
    inside = (~mask).to(torch.float64 if like.dtype == torch.float64 else torch.float32)
    encoded = []
    for axis in (1, 2):
        count = inside.cumsum(axis)
        last = count.narrow(axis, -1, 1)
        angle = count / (last + POSITION_EPS) * (2 * math.pi)
        encoded.append(sine_encoding(angle, channels // 2, temperature))
    return torch.cat(encoded, dim=-1).flatten(1, 2)
