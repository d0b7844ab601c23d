"""Which results keep 32 bits where training computes with 16."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Widen 16-bit values to float32: losses, box arithmetic and final scores need it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
