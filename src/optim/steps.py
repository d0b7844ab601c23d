"""Step decay with a linear warm-up per step, as in mmcv 1.x.

Used by the official detection recipes: the learning rate increases linearly over the first steps
and is multiplied by a factor after given epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from src.optim.schedules import StepSchedule


class WarmupMultiStep(StepSchedule):
    """``base * gamma ** (number of milestones passed)``, times a warm-up factor.

    Args:
        optimizer: Optimizer whose learning rates are the peak rates.
        milestones: Epochs after which the learning rate decreases, ascending.
        gamma: Factor at each milestone, above 0.
        warmup_steps: Length of the warm-up in optimizer steps, 0 or more.
        warmup_ratio: Warm-up factor of the first step, in [0, 1].

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int] = (8, 11),
        gamma: float = 0.1,
        warmup_steps: int = 500,
        warmup_ratio: float = 0.001,
    ) -> None:
        if list(milestones) != sorted(milestones) or any(m < 0 for m in milestones):
            raise ValueError(
                f"WarmupMultiStep: expected milestones in ascending order, got {list(milestones)}"
            )
        if gamma <= 0 or warmup_steps < 0 or not 0 <= warmup_ratio <= 1:
            raise ValueError(
                "WarmupMultiStep: expected gamma > 0, warmup_steps >= 0 and warmup_ratio from 0 to "
                f"1, got {gamma=}, {warmup_steps=}, {warmup_ratio=}"
            )
        self.milestones, self.gamma = tuple(milestones), gamma
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """Learning rate at ``step``."""
        epoch = step // self.steps_per_epoch
        rate = base * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if step >= self.warmup_steps:
            return rate
        missing = (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)
        return rate * (1 - missing)
