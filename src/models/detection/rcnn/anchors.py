"""Anchors: boxes of fixed shapes at every cell of every pyramid level.

Convention of mmdet 2.x, which the official detectors use: the anchors of a cell are centred on its
top left corner (offset 0) and ordered by ratio; cells are ordered row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.types import Size


class AnchorGenerator:
    """Anchors of one scale and several aspect ratios.

    Args:
        strides: Pixels per cell of each level, finest first.
        ratios: Height / width of the anchors of a cell.
        scale: Square root of an anchor's area, in cells.
    """

    def __init__(
        self,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        scale: float = 8.0,
    ) -> None:
        self.strides = tuple(strides)
        self.num_per_cell = len(ratios)
        # Constants, which a network on the meta device needs too.
        tall = torch.tensor(ratios, device="cpu").sqrt()
        half = torch.stack([scale / tall, scale * tall], dim=1) / 2  # (A, 2): half width, height
        self._shape = torch.cat([-half, half], dim=1)  # (A, 4) in cells, float32

    def __call__(self, sizes: Sequence[Size], like: Tensor) -> list[Tensor]:
        """Anchors of all levels.

        Args:
            sizes: Height and width of each level in cells.
            like: Gives device and dtype.

        Returns:
            Boxes ``x1, y1, x2, y2`` in pixels per level, each ``(H * W * A, 4)``.
        """
        return [
            self._level(size, stride, like)
            for size, stride in zip(sizes, self.strides, strict=True)
        ]

    def _level(self, size: Size, stride: int, like: Tensor) -> Tensor:
        y, x = (torch.arange(n, device=like.device).to(like.dtype).mul_(stride) for n in size)
        y, x = torch.meshgrid(y, x, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
        shape = (self._shape * stride).to(like)
        return (corner[:, :, None] + shape).reshape(-1, 4)  # (H, W, A, 4) -> (H * W * A, 4)

    def valid(self, sizes: Sequence[Size], padded: Size, device: torch.device) -> list[Tensor]:
        """Whether anchors belong to cells of an image, and not to the padding of the batch.

        Args:
            sizes: Height and width of each level in cells.
            padded: Height and width of the image after its own padding.
            device: Device of the result.

        Returns:
            Bool per level, each ``(H * W * A,)``.
        """
        flags = []
        for size, stride in zip(sizes, self.strides, strict=True):
            own = torch.zeros(*size, self.num_per_cell, dtype=torch.bool, device=device)
            own[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
            flags.append(own.flatten())
        return flags
