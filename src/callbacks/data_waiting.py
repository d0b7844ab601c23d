"""Report of a training that waits for its data."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_warn

from src.callbacks.step_times import Waiting

MUCH_WAITING = 0.05
"""Share of the time of a step above which waiting for data is reported."""


class DataWaiting(Callback):
    """Measure how long training waits for data, and warn once if that is too long.

    The time between requesting a batch and receiving it is measured on rank 0. Nothing is measured
    if a profiler is set.

    Args:
        every_n_steps: Steps per measurement, also across several short epochs.
        warmup_steps: Steps at the start of an epoch, and after a validation within it, that are not
            measured because the data loader workers start. At least 1.
        threshold: Maximum share of the time that is acceptable.
    """

    def __init__(
        self, every_n_steps: int = 50, warmup_steps: int = 10, threshold: float = MUCH_WAITING
    ) -> None:
        self.every_n_steps, self.warmup_steps = every_n_steps, max(1, warmup_steps)
        self.threshold = threshold
        self._waiting: Waiting | None = None
        self._has_reported = False
        self._warmup = self._steps = 0
        self._seconds = self._waited = 0.0  # of the steps measured so far
        self._end = self._waited_until_end = 0.0  # of the last step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the training loop."""
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        if isinstance(profiler, PassThroughProfiler):
            profiler = trainer.profiler = Waiting()  # type: ignore[attr-defined]
        self._waiting = profiler if isinstance(profiler, Waiting) else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the steps that are not measured."""
        self._warmup = self.warmup_steps

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time of a validation within an epoch."""
        self._warmup = self.warmup_steps

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure a step, and report when there are enough."""
        if self._waiting is None or self._has_reported:
            return
        before, waited_before = self._end, self._waited_until_end
        self._end, self._waited_until_end = time.perf_counter(), self._waiting.seconds
        if self._warmup > 0:
            self._warmup -= 1
            return
        self._steps += 1
        self._seconds += self._end - before
        self._waited += self._waited_until_end - waited_before
        if self._steps == self.every_n_steps:
            self._evaluate(trainer)
            self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def _evaluate(self, trainer: Trainer) -> None:
        share = self._waited / max(self._seconds, 1e-9)
        if share > self.threshold:
            self._has_reported = True
            data: Any = getattr(trainer, "datamodule", None)
            cores = available_cores() // trainer.num_devices
            rank_zero_warn(
                f"Training waited for data for {share:.0%} of the time of {self._steps} steps. "
                + advice(getattr(data, "num_workers", None), cores)
            )


def advice(workers: int | None, cores: int) -> str:
    """What to do if training waits for data.

    Args:
        workers: Data loader workers per device; None if unknown.
        cores: CPU cores per device.
    """
    cores = max(1, cores)
    cheaper = "store smaller images, use lighter augmentation or a faster disk"
    if workers is not None and workers >= cores:
        return (
            f"There are {workers} data loader workers for {cores} CPU cores per device, so"
            f" {cheaper}."
        )
    now = "" if workers is None else f" (now {workers})"
    return f"Raise --data.num_workers{now}; there are {cores} CPU cores per device. Or {cheaper}."


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
