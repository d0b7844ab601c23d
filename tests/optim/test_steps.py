"""The step schedule of the official detection recipes."""

import pytest
import torch

from src.optim.steps import WarmupMultiStep


def plan(**settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = WarmupMultiStep(optimizer, **settings)
    schedule.plan(total_steps=1200, steps_per_epoch=100)
    return schedule


def test_learning_rates_equal_mmcv():
    schedule = plan(milestones=[8, 11], warmup_steps=500, warmup_ratio=0.001)
    assert schedule.rate(1.0, 0) == pytest.approx(0.001)
    assert schedule.rate(1.0, 250) == pytest.approx(1 - 0.5 * 0.999)
    assert schedule.rate(1.0, 500) == 1
    assert schedule.rate(1.0, 799) == 1
    assert schedule.rate(1.0, 800) == pytest.approx(0.1)
    assert schedule.rate(1.0, 1100) == pytest.approx(0.01)


def test_warm_up_multiplies_the_decayed_rate():
    schedule = plan(milestones=[1], warmup_steps=200, warmup_ratio=0.0)
    assert schedule.rate(1.0, 100) == pytest.approx(0.1 * 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [11, 8]}, "ascending"),
        ({"gamma": 0.0}, "gamma > 0"),
        ({"warmup_ratio": 2.0}, "from 0 to 1"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(**settings)
