"""Consistent checkpoints with gradient accumulation.

Accumulated gradients are not saved in checkpoints. A checkpoint written between two optimizer steps
(after Ctrl-C, an error or a validation within an epoch) therefore counts the batches since the last
step as unused and contains the batch norm statistics of that step. A resumed run repeats these
batches and ends with the same result as an uninterrupted one.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from src.tasks import BaseTask

_PREFIX = "network."
_COUNTS = ("ready", "started", "processed", "completed")


class StepBoundary(Callback):
    """Make every checkpoint contain the state after an optimizer step."""

    def __init__(self) -> None:
        self._step = self._batches = 0  # last optimizer step, and batches of the epoch until then
        self._buffers: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the state at the start, which is a step boundary."""
        self._remember(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the state; gradients are not accumulated across epochs."""
        self._remember(trainer, pl_module)
        self._batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the state after an optimizer step."""
        if trainer.global_step > self._step:
            self._remember(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Subtract the batches since the last optimizer step from the progress."""
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if trainer.state.fn != TrainerFn.FITTING or loops is None:
            return
        progress = loops["epoch_loop.batch_progress"]
        current = progress["current"]
        if current["ready"] > current["processed"]:  # the interrupted batch is repeated
            progress["is_last_batch"] = False
        pending = current["processed"] - self._batches
        if trainer.global_step > self._step or progress["is_last_batch"] or pending <= 0:
            return
        for counts in (current, progress["total"]):
            counts |= {name: counts[name] - pending for name in _COUNTS}
        key = "current_model_state" if "current_model_state" in checkpoint else "state_dict"
        checkpoint[key] = checkpoint[key] | self._buffers

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        self._step, self._batches = trainer.global_step, progress.current.processed
        if trainer.accumulate_grad_batches > 1 and isinstance(pl_module, BaseTask):
            named = pl_module.training_network.named_buffers()
            self._buffers = {_PREFIX + name: buffer.detach().clone() for name, buffer in named}
