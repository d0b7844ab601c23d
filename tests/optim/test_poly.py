"""Polynomial decay with warm-up, compared with the formula of mmcv."""

import pytest
import torch

from src.optim.poly import WarmupPoly


def schedule(total=100, base=6e-5, scale=1.0, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    made = WarmupPoly(optimizer, **settings)
    made.plan(total, 10, scale)
    return made, optimizer


def rates(total=100, **settings):
    made, optimizer = schedule(total, **settings)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return seen


def test_linear_decay_with_warmup_factor():
    seen = rates(warmup_steps=20, warmup_ratio=1e-6)
    for step, rate in enumerate(seen):
        line = 6e-5 * (1 - step / 100)
        if step < 20:
            line *= 1 - (1 - step / 20) * (1 - 1e-6)
        assert rate == pytest.approx(line, rel=1e-12)
    assert seen[0] == pytest.approx(6e-11)


def test_power_and_min_lr():
    seen = rates(warmup_steps=0, power=0.9, min_lr=1e-5)
    assert seen[0] == pytest.approx(6e-5)
    assert seen[50] == pytest.approx(5e-5 * 0.5**0.9 + 1e-5)


def test_min_lr_scales_with_the_batch_size():
    made, optimizer = schedule(scale=2.0, warmup_steps=0, min_lr=1e-5)
    made.last_epoch = 100
    made.apply()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-5)


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": -1}, {"warmup_ratio": 2.0}, {"power": 0.0}, {"min_lr": -1.0}]
)
def test_invalid_settings(settings):
    with pytest.raises(ValueError, match="WarmupPoly: expected"):
        schedule(**settings)
