"""Early stopping by the metric of the task."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from src.callbacks.run_folder import tell
from src.errors import UserError
from src.tasks import BaseTask


class TaskEarlyStopping(EarlyStopping):
    """Stop when the metric that selects the best checkpoint has not improved.

    A validation without an annotated object has no value (NaN) and counts as no improvement. A loss
    that is not finite is the matter of `TerminateOnNaN`.

    Args:
        monitor: Logged metric; default is that of the task (``val/top1``, ``val/bbox_AP``,
            ``val/mIoU``).
        mode: Whether a larger or a smaller value is better; default is that of the task.
        patience: Validations without improvement after which training stops.
        min_delta: Smallest change that counts as an improvement.

    Raises:
        UserError: If a value is out of range.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        patience: int = 10,
        min_delta: float = 0.0,
    ) -> None:
        for name, value in (("patience", patience), ("min_delta", min_delta)):
            if value < 0:
                raise UserError(f"TaskEarlyStopping.{name}: expected 0 or more, got {value}.")
        super().__init__(
            monitor or "val/loss", min_delta, patience, mode=mode or "min", check_finite=False
        )
        self.requested_monitor, self.requested_mode = monitor, mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Use the monitor and mode of the task unless they were given."""
        if isinstance(pl_module, BaseTask):
            mode = self.requested_mode or pl_module.monitor_mode
            # The base class derives values from the mode.
            super().__init__(
                self.requested_monitor or pl_module.monitor,
                abs(self.min_delta),
                self.patience,
                mode=mode,
                check_finite=False,
            )
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print why training has stopped."""
        super().on_train_end(trainer, pl_module)
        if self.stopped_epoch > 0 and self.stopping_reason_message:
            tell(f"Early stopping: {' '.join(self.stopping_reason_message.split())}")
