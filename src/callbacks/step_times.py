"""Times of training steps, for ``python -m src benchmark``."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from src.callbacks.pace import number_of_images


class Waiting(Profiler):
    """Profiler that measures how long the training loop waits for its loader, in seconds.

    Lightning calls a profiler before and after the loop fetches a batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._start = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock if the action is fetching a batch."""
        if action_name.endswith("train_dataloader_next"):
            self._start = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop the clock if the action is fetching a batch."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._start


class StepTimes(Callback):
    """Measure training steps, then stop the training.

    After ``warmup`` steps, the throughput of ``steps`` consecutive steps is measured without
    synchronising the device in between. Then the latencies of another ``steps`` steps are measured,
    synchronising the device before and after each of them.

    Args:
        warmup: Steps that are not measured.
        steps: Steps of each of the two measurements.
        waiting: Profiler of the trainer.

    Attributes:
        images: Images of the steps without synchronisation.
        seconds: Duration of these steps.
        waited: Part of ``seconds`` spent waiting for the loader.
        latencies: Duration of each synchronised step in seconds, without loading.
    """

    def __init__(self, warmup: int, steps: int, waiting: Waiting) -> None:
        self.warmup, self.steps, self.waiting = warmup, steps, waiting
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self.latencies: list[float] = []
        self._done = 0
        self._start = self._step_start = self._waited_before = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all steps have been measured."""
        return len(self.latencies) == self.steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the limit of epochs, so that a small dataset is repeated."""
        trainer.fit_loop.max_epochs = -1

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of a step."""
        if self._done == self.warmup:
            self._start = now(pl_module.device)
            self._waited_before = self.waiting.seconds
        if self._done >= self.warmup + self.steps:
            self._step_start = now(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock of a step, or that of the consecutive steps."""
        self._done += 1
        measured = self._done - self.warmup
        if 0 < measured <= self.steps:
            self.images += number_of_images(batch)
        if measured == self.steps:
            self.seconds = now(pl_module.device) - self._start
            self.waited = self.waiting.seconds - self._waited_before
        elif measured > self.steps:
            self.latencies.append(now(pl_module.device) - self._step_start)
        if self.is_complete:
            trainer.should_stop = True


def now(device: torch.device) -> float:
    """Current time after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
