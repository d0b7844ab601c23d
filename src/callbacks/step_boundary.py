"""Checkpoints between two optimizer steps: those of the last step, so that nothing is lost.

Where batches are accumulated, gradients of a part of a step are in no checkpoint. A checkpoint that
is written then (after Ctrl-C, an error or a validation within an epoch) counts the batches since
the last step as not used, and holds the statistics of batch norm of that step: a resumed training
repeats these batches and ends where it would have ended.
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
    """Let every checkpoint stand at an optimizer step."""

    def __init__(self) -> None:
        self._step = self._batches = 0  # at the last optimizer step, batches of its epoch
        self._buffers: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from where training goes on, which is a boundary."""
        self._remember(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step lies across two epochs."""
        self._remember(trainer, pl_module)
        self._batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the boundary that a step makes."""
        if trainer.global_step > self._step:
            self._remember(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the batches since the last step out of the progress."""
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if trainer.state.fn != TrainerFn.FITTING or loops is None:
            return
        progress = loops["epoch_loop.batch_progress"]
        current = progress["current"]
        if current["ready"] > current["processed"]:  # the one that was interrupted is still to come
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
