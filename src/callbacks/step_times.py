"""Times of training steps, for ``python -m src benchmark``."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler


class Waiting(Profiler):
    """Seconds that the training loop waits for its loader.

    Lightning tells a profiler when the loop asks for a batch and when it has got one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._start = 0.0

    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name.endswith("train_dataloader_next"):
            self._start = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """An action has ended."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._start


class StepTimes(Callback):
    """Measure steps, then end the training.

    After ``warmup`` steps, ``steps`` run as in any training: the device works while the host goes
    on, and the rate counts everything between the first and the last of them. The next ``steps``
    wait for the device at their ends, for the time of each single one.

    Args:
        warmup: Steps that are not measured.
        steps: Steps of each kind.
        waiting: Profiler of the trainer.

    Attributes:
        images: Images of the first kind of steps.
        seconds: Their duration.
        waited: Seconds thereof for which the loop waited for the loader.
        latencies: Seconds of each step of the second kind, without loading.
    """

    def __init__(self, warmup: int, steps: int, waiting: Waiting) -> None:
        self.warmup, self.steps, self.waiting = warmup, steps, waiting
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self.latencies: list[float] = []
        self._done = 0
        self._start = self._step_start = self._waited_before = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all steps were measured."""
        return len(self.latencies) == self.steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat a small dataset as often as it takes."""
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
        """Stop the clock of a step, or that of the steps in a row."""
        self._done += 1
        measured = self._done - self.warmup
        if 0 < measured <= self.steps:
            self.images += len(batch["image"])
        if measured == self.steps:
            self.seconds = now(pl_module.device) - self._start
            self.waited = self.waiting.seconds - self._waited_before
        elif measured > self.steps:
            self.latencies.append(now(pl_module.device) - self._step_start)
        if self.is_complete:
            trainer.should_stop = True


def now(device: torch.device) -> float:
    """Time when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
