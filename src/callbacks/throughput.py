"""Training speed in images per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.pace import number_of_images


class Throughput(Callback):
    """Log ``train/images_per_second`` over all devices, including data loading, not validation.

    Args:
        every_n_steps: Batches per measurement.
        warmup_steps: Batches at the start of an epoch that are not measured.
    """

    def __init__(self, every_n_steps: int = 50, warmup_steps: int = 1) -> None:
        self.every_n_steps, self.warmup_steps = every_n_steps, warmup_steps
        self._images, self._start = 0, 0.0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images of a batch, and log when a measurement is complete."""
        if batch_idx < self.warmup_steps:
            self._images, self._start = 0, self._now(pl_module)
            return
        self._images += number_of_images(batch)
        measured = batch_idx + 1 - self.warmup_steps
        if measured % self.every_n_steps == 0 or trainer.is_last_batch:
            now = self._now(pl_module)
            speed = self._images * trainer.world_size / max(now - self._start, 1e-9)
            pl_module.log("train/images_per_second", speed, prog_bar=True, batch_size=1)
            self._images, self._start = 0, now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude the time of a validation within an epoch."""
        self._images, self._start = 0, self._now(pl_module)

    @staticmethod
    def _now(pl_module: LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()
