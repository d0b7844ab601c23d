"""A validation after the last training step, whatever the validation interval is."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

# Attributes with which Lightning validates after every batch.
_EVERY_BATCH = {
    "check_val_every_n_epoch": 1,
    "val_check_batch": 1,
    "_val_check_time_interval": None,
}


class FinalValidation(Callback):
    """Validate when training ends.

    Otherwise a run whose length is not a multiple of the interval (``check_val_every_n_epoch``,
    ``val_check_interval``) would end with weights that were never measured. It must come after
    callbacks that stop the training.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make Lightning validate after this batch if it is the last one."""
        if trainer.enable_validation and _is_last_step(trainer):
            self._before = {name: getattr(trainer, name) for name in _EVERY_BATCH}
            for name, value in _EVERY_BATCH.items():
                setattr(trainer, name, value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the interval."""
        for name, value in self._before.items():
            setattr(trainer, name, value)
        self._before = {}


def _is_last_step(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    if trainer.should_stop and loop._can_stop_early:
        return True
    if not loop.epoch_loop._is_training_done:
        return False
    steps_are_done = 0 <= trainer.max_steps <= trainer.global_step
    epochs = trainer.max_epochs
    return steps_are_done or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1)
