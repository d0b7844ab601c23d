"""Learning-rate schedules per optimizer step, over the whole length of training.

``WarmupCosine`` follows timm's ``CosineLRScheduler`` (one cycle, ``t_in_epochs=False``,
``warmup_prefix=False``): a linear warm-up, then the cosine evaluated at the *absolute* step.
Learning rates depend only on the step and the configuration, so the step is the only state that is
restored when resuming. Schedules that monitor a metric are not part of this module.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.errors import UserError


class StepSchedule(LRScheduler):
    """Base class of schedules over the whole training, stepped after every optimizer step.

    The length of training is known only in ``configure_optimizers``. A schedule is therefore first
    created from the configuration, and then the task calls :meth:`plan`. Until then the learning
    rates are not changed.
    """

    interval = "step"

    def __init__(self, optimizer: Optimizer) -> None:
        """Use the current learning rates of ``optimizer`` as base rates."""
        self.total_steps = 0  # 0 = not planned yet
        self.steps_per_epoch = 0
        self.rate_scale = 1.0
        super().__init__(optimizer)

    def plan(self, total_steps: int, steps_per_epoch: int, rate_scale: float = 1.0) -> None:
        """Set the length of training and the learning rate of the current step.

        Args:
            total_steps: Optimizer steps of the whole training, at least 1.
            steps_per_epoch: Optimizer steps of one epoch, at least 1.
            rate_scale: Factor for the rates of the schedule (global / reference batch size).

        Raises:
            ValueError: If a count is below 1.
        """
        if total_steps < 1 or steps_per_epoch < 1:
            raise ValueError(
                f"a schedule needs at least one step, got {total_steps=} and {steps_per_epoch=}"
            )
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.rate_scale = rate_scale
        self.apply()

    @property
    def num_warmup_steps(self) -> int:
        """Optimizer steps of warm-up; known after :meth:`plan`."""
        return int(getattr(self, "warmup_steps", 0))

    def apply(self) -> None:
        """Set the learning rates of the current step in the optimizer."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of every group at the current step."""
        if not self.total_steps:
            return [group["lr"] for group in self.optimizer.param_groups]
        return [self.rate(float(base), self.last_epoch) for base in self.base_lrs]

    @abstractmethod
    def rate(self, base: float, step: int) -> float:
        """Learning rate at optimizer step ``step`` (0 = first) of a group with rate ``base``."""

    def state_dict(self) -> dict[str, Any]:
        """Only the step, because everything else comes from the configuration."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step.

        Raises:
            UserError: If there is none.
        """
        step = state_dict.get("last_epoch")
        if type(step) is not int or step < 0:
            raise UserError(
                "The learning-rate schedule in the checkpoint is invalid: expected a step, got"
                f" {str(step)[:40]!r}."
            )
        self.last_epoch = step
        self.apply()


class WarmupCosine(StepSchedule):
    """Linear warm-up, then cosine decay to ``min_lr`` at the last step.

    Args:
        optimizer: Optimizer whose learning rates are the peak rates.
        warmup_epochs: Length of the warm-up in epochs (fractions allowed), 0 or more.
        warmup_steps: Length of the warm-up in optimizer steps; overrides ``warmup_epochs``.
        warmup_lr: Learning rate of the first step, per reference batch size, same for all groups.
        min_lr: Final learning rate, per reference batch size, the same for every group.

    Raises:
        ValueError: If a value is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
    ) -> None:
        """See the class."""
        settings = {"warmup_epochs": warmup_epochs, "warmup_lr": warmup_lr, "min_lr": min_lr}
        settings["warmup_steps"] = warmup_steps or 0
        for name, value in settings.items():
            if value < 0:
                raise ValueError(f"{name} of WarmupCosine must be 0 or more, got {value}")
        self.warmup_epochs, self.requested_warmup_steps = warmup_epochs, warmup_steps
        self.warmup_lr, self.min_lr = warmup_lr, min_lr
        super().__init__(optimizer)

    @property
    def num_warmup_steps(self) -> int:
        """Optimizer steps of warm-up."""
        if self.requested_warmup_steps is not None:
            return self.requested_warmup_steps
        return int(self.warmup_epochs * self.steps_per_epoch)

    def rate(self, base: float, step: int) -> float:
        """Learning rate at ``step``."""
        warmup_lr, min_lr = self.warmup_lr * self.rate_scale, self.min_lr * self.rate_scale
        if step < self.num_warmup_steps:
            return warmup_lr + step * (base - warmup_lr) / self.num_warmup_steps
        if step >= self.total_steps:
            return min_lr
        return min_lr + 0.5 * (base - min_lr) * (1 + math.cos(math.pi * step / self.total_steps))
