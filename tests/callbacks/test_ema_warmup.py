"""Warm-up of the EMA decay as in mmdetection's ExpMomentumEMAHook."""

import math

import pytest
import torch

from src.callbacks import EMA
from src.errors import UserError


def test_momentum_decreases_as_in_mmdetection():
    ema = EMA(decay=0.9999, warmup_steps=2000)
    update = ema._kwargs["multi_avg_fn"]
    for step in (0, 1, 500, 2000, 100_000):
        average = [torch.zeros(1, dtype=torch.float64)]
        update(average, [torch.ones(1, dtype=torch.float64)], torch.tensor(step + 1))
        momentum = (1 - 1e-4) * math.exp(-(1 + step) / 2000) + 1e-4
        assert float(average[0]) == pytest.approx(momentum, rel=1e-9)


def test_negative_warmup_is_refused():
    with pytest.raises(UserError, match="0 or more, got -1"):
        EMA(warmup_steps=-1)
