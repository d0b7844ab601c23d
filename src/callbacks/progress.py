"""Progress display: bars on a terminal and in notebooks, lines in log files."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar, TQDMProgressBar


class _NoVersion(ProgressBar):
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The logged metrics without the version number of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class TerminalProgress(_NoVersion, RichProgressBar):
    """Rich progress bars."""


class NotebookProgress(_NoVersion, TQDMProgressBar):
    """Progress bars for notebooks."""


class LogProgress(_NoVersion):
    """One line per epoch, and occasional lines within long epochs, without control characters.

    Args:
        every_n_seconds: Minimum time between two lines within an epoch.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        self.every_n_seconds = every_n_seconds
        self._is_enabled = True
        self._epoch_start = self._last_line = 0.0

    def disable(self) -> None:
        """Turn output off; called on all ranks except 0, and while tuner callbacks run."""
        self._is_enabled = False

    def enable(self) -> None:
        """Turn output on."""
        self._is_enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print progress within a long epoch."""
        total = trainer.num_training_batches
        if self._is_due() and batch_idx + 1 < total:
            self._write(f"epoch {trainer.current_epoch}  step {batch_idx + 1}/{total}", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the epoch, after its validation."""
        seconds = time.monotonic() - self._epoch_start
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs - 1}"
        self._write(f"epoch {trainer.current_epoch}{last}  {seconds:.1f} s", trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print progress of a long prediction."""
        if self._is_due():
            self._write(f"predicted {batch_idx + 1} batches", trainer)

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_line >= self.every_n_seconds

    def _write(self, text: str, trainer: Trainer) -> None:
        self._last_line = time.monotonic()
        if self._is_enabled and trainer.is_global_zero:
            metrics = self.get_metrics(trainer, trainer.lightning_module)
            values = [f"{name} {_short(value)}" for name, value in metrics.items()]
            print("  ".join([text, *values]), flush=True)


def default_progress() -> Callback:
    """Progress display for a notebook, a terminal or a log file."""
    if "ipykernel" in sys.modules:
        return NotebookProgress()
    return TerminalProgress(leave=True) if sys.stdout.isatty() else LogProgress()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
