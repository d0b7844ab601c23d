"""Agreement of all ranks on whether to stop."""

from __future__ import annotations

import time

import torch
from torch import distributed

_INTERVAL = 0.25  # target time between two all-reduces in seconds
_MAX_CALLS = 32  # maximum number of calls between two all-reduces


class Agreement:
    """Periodic all-reduce of stop requests, so that all ranks stop at the same step.

    All ranks must call `reached` at the same steps. They communicate only about four times per
    second; the number of calls without communication is also agreed on.

    Args:
        device: Device of the tensors for collective operations.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._planned = self._left = 1
        self._since = time.monotonic()

    def reached(self, requested: bool) -> bool:
        """Whether any rank has requested a stop; the same result on all ranks.

        Args:
            requested: Whether this rank requests a stop.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            return requested
        self._left -= 1
        if self._left > 0:
            return False
        elapsed = time.monotonic() - self._since
        values = torch.tensor([float(requested), elapsed], device=self._device)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        any_requested, seconds = values.tolist()
        calls = int(self._planned * _INTERVAL / max(seconds, 1e-6))
        self._planned = self._left = max(1, min(calls, 2 * self._planned, _MAX_CALLS))
        self._since = time.monotonic()
        return bool(any_requested)
