"""What to do after a training that was interrupted by a signal."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from src.file_names import quoted
from src.runs import trial_of
from src.tasks import can_predict


def after_interrupted_fit(trainer: Trainer, model: LightningModule) -> str:
    """Message with the checkpoints that were saved, and how to predict and to resume.

    Args:
        trainer: Trainer of the interrupted run.
        model: Its task; a command to predict is left out if it cannot predict.
    """
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    trial = trial_of(Path(trainer.default_root_dir))
    last = next((c.last_model_path for c in callbacks if c.last_model_path), None)
    if last is None:
        return (
            "Interrupted. Nothing was saved, because no step was completed or saving is turned off."
            f" Run the same command again.{trial}"
        )
    resume = "To resume, run the same command with --ckpt_path last"
    if not can_predict(model):
        return f"Interrupted. Saved to {last}\n{resume}"
    known = (c.best_model_path for c in callbacks)
    best = next((path for path in known if path and Path(path).exists()), None)
    state = (
        f"There is no best checkpoint yet; it is written after a validation.{trial}"
        if best is None
        else f"The best checkpoint so far is {best}"
    )
    file = quoted(best or last)
    predict = f"To predict: python -m src predict --ckpt_path {file} --data.predict_dir FOLDER"
    return f"Interrupted. Saved to {last}\n{state}\n{predict}\n{resume}"
