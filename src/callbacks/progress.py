"""Progress for every kind of output: bars on a terminal and in notebooks, lines in a log file."""

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
        """The logged values without the number of the run folder, which says nothing."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class TerminalProgress(_NoVersion, RichProgressBar):
    """Rich bars."""


class NotebookProgress(_NoVersion, TQDMProgressBar):
    """Bars that notebooks can draw."""


class LogProgress(_NoVersion):
    """One line per epoch and at most one every few seconds in between, without control characters.

    Args:
        every_n_seconds: Shortest time between two lines within an epoch.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        self.every_n_seconds = every_n_seconds
        self._is_enabled = True
        self._epoch_start = self._last_line = 0.0

    def disable(self) -> None:
        """Lightning asks for silence on all ranks but the first, and while it tries settings."""
        self._is_enabled = False

    def enable(self) -> None:
        """Lightning has finished trying settings."""
        self._is_enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show that a long epoch is alive."""
        total = trainer.num_training_batches
        if self._is_due() and batch_idx + 1 < total:
            self._write(f"epoch {trainer.current_epoch}  step {batch_idx + 1}/{total}", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum up the epoch, after its validation."""
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
        """Show that a long prediction is alive."""
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
    """The progress display that suits where the output goes."""
    if "ipykernel" in sys.modules:
        return NotebookProgress()
    return TerminalProgress(leave=True) if sys.stdout.isatty() else LogProgress()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
