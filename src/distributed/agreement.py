"""A decision of all ranks, made together."""

from __future__ import annotations

import time

import torch
from torch import distributed

_SECONDS = 0.25
_MOST = 32


class Agreement:
    """Whether any rank wants to stop, so that all of them stop at the same place.

    All ranks ask at the same places. They communicate only about every quarter of a second: how
    many questions pass until then is agreed as well.

    Args:
        device: Where the collective operations of this run take their tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._planned = self._left = 1
        self._since = time.monotonic()

    def reached(self, wanted: bool) -> bool:
        """Tell whether a rank wants to stop; the same answer everywhere.

        Args:
            wanted: Whether this rank wants to.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            return wanted
        self._left -= 1
        if self._left > 0:
            return False
        values = torch.tensor([float(wanted), time.monotonic() - self._since], device=self._device)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        any_wants, seconds = values.tolist()
        fitting = int(self._planned * _SECONDS / max(seconds, 1e-6))
        self._planned = self._left = max(1, min(fitting, 2 * self._planned, _MOST))
        self._since = time.monotonic()
        return bool(any_wants)
