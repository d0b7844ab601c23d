"""Progress display: bars on a terminal and in notebooks, lines in log files."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar, TQDMProgressBar

from src.callbacks.metric_text import is_score, percent
from src.callbacks.pace import Pace, number_of_images, readable_time


class _Measured(ProgressBar):
    """Metrics where they were measured, learning rate, images per second and the time left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pace = Pace()
        self._has_validated = False

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Logged metrics, scores in percent, those of a validation only after it; no version."""
        metrics = super().get_metrics(trainer, pl_module)
        for name in ("v_num", "train/images_per_second"):
            metrics.pop(name, None)
        for name, value in metrics.items():
            if isinstance(value, float) and is_score(name, pl_module):
                metrics[name] = percent(value)
        if trainer.state.fn != "fit":
            return metrics
        if not self._has_validated:
            metrics = {k: v for k, v in metrics.items() if not k.startswith("val/")}
        return metrics | self._speed(trainer)

    def _speed(self, trainer: Trainer) -> dict[str, str]:
        found = {}
        rates = [
            group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]
        if rates:
            found["lr"] = f"{max(rates):.3g}"
        if (speed := self.pace.images_per_second) is not None:
            found["images/s"] = f"{speed:.3g}" if speed < 100 else f"{speed:.0f}"
        if (left := self.pace.seconds_left(trainer)) is not None:
            found["left"] = readable_time(left)
        return found

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.pace.start()
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch."""
        self.pace.start_epoch()
        self._has_validated = False
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget the metrics of a validation within the epoch."""
        self._has_validated = False
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of a batch."""
        self.pace.add(number_of_images(batch) * trainer.world_size)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of a validation."""
        self._has_validated = not trainer.sanity_checking
        self.pace.pause()
        super().on_validation_end(trainer, pl_module)


class TerminalProgress(_Measured, RichProgressBar):
    """Rich progress bars."""


class NotebookProgress(_Measured, TQDMProgressBar):
    """Progress bars for notebooks."""


class LogProgress(_Measured):
    """One line per epoch, and occasional lines within long epochs, without control characters.

    Args:
        every_n_seconds: Minimum time between two lines within an epoch.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        self.every_n_seconds = every_n_seconds
        self._is_enabled = True
        self._last_line = self._loop_start = time.monotonic()

    def disable(self) -> None:
        """Turn output off; called on all ranks except 0, and while tuner callbacks run."""
        self._is_enabled = False

    def enable(self) -> None:
        """Turn output on."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        super().on_train_start(trainer, pl_module)
        self._last_line = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks of an epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print progress within a long epoch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        total = trainer.num_training_batches
        if self._is_due() and batch_idx + 1 < total:
            self._write_metrics(f"{_epoch(trainer)}  step {batch_idx + 1}/{total}", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of a validation within an epoch; those of others are in its line."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if not progress.is_last_batch:
            step = f"step {progress.current.ready}/{trainer.num_training_batches}"
            self._write_metrics(f"{_epoch(trainer)}  {step}", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the epoch, after its validation."""
        # Lightning ends an epoch again that the last step before the resume had finished.
        if not self.pace.has_trained and not self._has_validated:
            return
        self._write_metrics(f"{_epoch(trainer)}  {self.pace.epoch_time}", trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a validation."""
        self._loop_start = time.monotonic()
        if trainer.state.fn != "fit":
            self._last_line = self._loop_start

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a test."""
        self._loop_start = self._last_line = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a prediction."""
        self._loop_start = self._last_line = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print progress of a long validation."""
        self._write_progress("validated", batch_idx, trainer.num_val_batches, trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print progress of a long test."""
        self._write_progress("tested", batch_idx, trainer.num_test_batches, trainer)

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
        self._write_progress("predicted", batch_idx, trainer.num_predict_batches, trainer)

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_line >= self.every_n_seconds

    def _write_progress(
        self, verb: str, batch_idx: int, totals: list[int | float], trainer: Trainer
    ) -> None:
        """Print the progress of a loop without metrics if a line is due, and the end of a long one.

        The last batch ends what earlier lines have shown; short loops have no lines.
        """
        done, total = batch_idx + 1, sum(totals)
        is_end = done == total and self._last_line > self._loop_start
        if is_end:
            self._write(f"{verb} {done}/{total} batches", trainer)
        elif self._is_due():
            left = (time.monotonic() - self._loop_start) / done * (total - done)
            self._write(f"{verb} {done}/{total} batches  {readable_time(left)} left", trainer)

    def _write_metrics(self, text: str, trainer: Trainer) -> None:
        metrics = self.get_metrics(trainer, trainer.lightning_module)
        after = {"images/s": "{} images/s", "left": "{} left"}
        values = [after.get(name, f"{name} {{}}").format(_short(v)) for name, v in metrics.items()]
        self._write("  ".join([text, *values]), trainer)

    def _write(self, text: str, trainer: Trainer) -> None:
        self._last_line = time.monotonic()
        if self._is_enabled and trainer.is_global_zero:
            print(text, flush=True)


def default_progress() -> Callback:
    """Progress display for a notebook, a terminal or a log file."""
    if "ipykernel" in sys.modules:
        return NotebookProgress()
    return TerminalProgress(leave=True) if sys.stdout.isatty() else LogProgress()


def _epoch(trainer: Trainer) -> str:
    limits = [] if trainer.max_epochs in (None, -1) else [int(trainer.max_epochs or 0)]
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches  # steps
    if trainer.max_steps not in (None, -1) and 0 < per_epoch < math.inf:
        limits.append(math.ceil(trainer.max_steps / math.ceil(per_epoch)))
    last = f"/{min(limits) - 1}" if limits else ""
    return f"epoch {trainer.current_epoch}{last}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
