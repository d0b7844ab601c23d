import pytest
import torch
from timm.scheduler import CosineLRScheduler

from src.optim import WarmupCosine


def optimizer_with(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("warmup_epochs", [0, 1.5, 4])
def test_warmup_cosine_equals_timm(warmup_epochs: float) -> None:
    ours, theirs = optimizer_with(4e-3, 1e-3), optimizer_with(4e-3, 1e-3)
    schedule = WarmupCosine(ours, warmup_epochs=warmup_epochs, warmup_lr=4e-6, min_lr=4e-5)
    schedule.plan(total_steps=70, steps_per_epoch=7)
    timm = CosineLRScheduler(
        theirs,
        t_initial=70,
        lr_min=4e-5,
        warmup_t=int(warmup_epochs * 7),
        warmup_lr_init=4e-6,
        warmup_prefix=False,
        t_in_epochs=False,
        cycle_limit=1,
    )
    for step in range(75):  # five steps beyond the end
        timm.step_update(step)
        assert rates_of(ours) == pytest.approx(rates_of(theirs), rel=1e-12), step
        ours.step()
        schedule.step()


def test_absolute_rates_scale_with_the_batch_size() -> None:
    optimizer = optimizer_with(8.0)
    schedule = WarmupCosine(optimizer, warmup_steps=2, warmup_lr=0.5, min_lr=0.25)
    schedule.plan(total_steps=4, steps_per_epoch=1, rate_scale=8)
    assert rates_of(optimizer) == [4.0]  # 0.5 * 8
    assert schedule.rate(8.0, 99) == 2.0  # 0.25 * 8


def test_warmup_steps_override_warmup_epochs() -> None:
    schedule = WarmupCosine(optimizer_with(1.0), warmup_epochs=3, warmup_steps=5)
    schedule.plan(total_steps=100, steps_per_epoch=10)
    assert schedule.num_warmup_steps == 5


def test_resuming_keeps_the_step_and_uses_new_settings() -> None:
    first = WarmupCosine(optimizer_with(1.0), min_lr=0.1)
    first.plan(total_steps=10, steps_per_epoch=5)
    for _ in range(4):
        first.optimizer.step()
        first.step()

    longer = WarmupCosine(optimizer_with(1.0), min_lr=0.1)
    longer.plan(total_steps=20, steps_per_epoch=5)
    longer.load_state_dict(first.state_dict())
    assert rates_of(longer.optimizer) == [longer.rate(1.0, 4)]
    assert longer.rate(1.0, 4) > first.rate(1.0, 4)


@pytest.mark.parametrize("setting", ["warmup_epochs", "warmup_steps", "warmup_lr", "min_lr"])
def test_negative_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} of WarmupCosine must be 0 or more, got -1"):
        WarmupCosine(optimizer_with(1.0), **{setting: -1})


def test_plan_needs_steps() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        WarmupCosine(optimizer_with(1.0)).plan(total_steps=0, steps_per_epoch=1)
