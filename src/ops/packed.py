"""The packed rows of DCNv4, and the two tensors of DCNv3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import Window, row_width


def unpack(offset_mask: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Copy packed rows to ``offset`` and ``mask`` of :func:`src.ops.dcnv3`."""
    groups, points = window.groups, window.points
    grouped = offset_mask[..., : groups * points * 3].unflatten(-1, (groups, points * 3))
    return grouped[..., : 2 * points].flatten(-2), grouped[..., 2 * points :].flatten(-2)


def pack(offset: Tensor, mask: Tensor, window: Window, fill: float = 0.0) -> Tensor:
    """Inverse of :func:`unpack`, with ``fill`` in the columns after the last group."""
    groups = (window.groups, -1)
    rows = torch.cat([offset.unflatten(-1, groups), mask.unflatten(-1, groups)], -1).flatten(-2)
    return F.pad(rows, (0, row_width(window) - rows.shape[-1]), value=fill)
