"""Polynomial decay with a linear warm-up per step, as in mmcv 1.x.

Used by the official segmentation recipes. The warm-up factor multiplies the decaying learning rate,
so the two overlap.
"""

from __future__ import annotations

from torch.optim import Optimizer

from src.optim.schedules import StepSchedule


class WarmupPoly(StepSchedule):
    """``min_lr + (base - min_lr) (1 - step / total)^power``, times a warm-up factor.

    Args:
        optimizer: Optimizer whose learning rates are the peak rates.
        warmup_steps: Length of the warm-up in optimizer steps, 0 or more.
        warmup_ratio: Warm-up factor of the first step, in [0, 1].
        power: Exponent of the decay, above 0; 1 is linear.
        min_lr: Final learning rate, per reference batch size, the same for every group.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 1500,
        warmup_ratio: float = 1e-6,
        power: float = 1.0,
        min_lr: float = 0.0,
    ) -> None:
        if warmup_steps < 0 or not 0 <= warmup_ratio <= 1 or power <= 0 or min_lr < 0:
            raise ValueError(
                "WarmupPoly: expected warmup_steps >= 0, warmup_ratio from 0 to 1, power > 0 and "
                f"min_lr >= 0, got {warmup_steps=}, {warmup_ratio=}, {power=}, {min_lr=}"
            )
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio
        self.power, self.min_lr = power, min_lr
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """Learning rate at ``step``."""
        min_lr = self.min_lr * self.rate_scale
        remaining = max(0.0, 1 - step / self.total_steps)
        rate = min_lr + (base - min_lr) * remaining**self.power
        if step >= self.warmup_steps:
            return rate
        missing = (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)
        return rate * (1 - missing)
