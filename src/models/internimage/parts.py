"""A few images at a time, so that intermediate values stay in the cache of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PART = 2**22
"""Bytes of the largest intermediate feature map of the images that run at a time."""


def in_parts(
    x: Tensor, image_bytes: int, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Results of ``run`` on a few images at a time.

    Args:
        x: Images or feature maps, ``(N, ...)``.
        image_bytes: Bytes of the largest intermediate feature map of one image.
        run: Computes tensors whose first axis are the images.
    """
    parts = [run(part) for part in x.split(max(1, PART // max(1, image_bytes)))]
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
