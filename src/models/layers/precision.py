"""Results that stay float32 under mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Cast 16-bit values to float32, which losses, box arithmetic and final scores need."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
