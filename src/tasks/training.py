"""Training hooks of a task: optimizer, learning rate, gradient clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from src.tasks.building import BuildingHooks
from src.tasks.optimization import Optimization, Position, configured_lr
from src.tasks.partial_training import warn_if_random
from src.tasks.resume import Resumed


class TrainingHooks(BuildingHooks):
    """Part of `BaseTask` that optimizes."""

    optimization: Optimization
    _resumed: Resumed | None

    parameter_groups: Callable[[], list[dict[str, Any]]]

    def configure_optimizers(self) -> Any:
        """Optimizer with grouped, scaled learning rates, and its schedule."""
        return self.optimization.configure(self.trainer, self.parameter_groups())

    @property
    def lr(self) -> float:
        """Learning rate of the configuration, or the one set by ``LearningRateFinder``.

        The former is for ``reference_batch_size`` images, the latter for the current batch size.
        """
        found = self.optimization.found_lr
        return configured_lr(self.optimization.make_optimizer) if found is None else found

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimization.found_lr = value

    def on_train_start(self) -> None:
        """Restore the settings of the configuration after a checkpoint or a finder."""
        if self._resumed is not None:
            self._resumed.restart(self.trainer, self.optimization)
        else:
            if self.weights is None:
                warn_if_random(self.frozen, self.lora)
            if self.optimization.is_outdated(self.trainer):
                self.optimization.restart(self.trainer, Position(self.trainer))
        self._resumed = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; with FSDP1, its own method computes the norm over all ranks."""
        whole = self.trainer.strategy.model
        is_norm = gradient_clip_algorithm in (None, "norm")
        if isinstance(whole, FullyShardedDataParallel) and is_norm and gradient_clip_val:
            whole.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
