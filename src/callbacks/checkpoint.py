"""Checkpoints: the best by a metric, the last after every epoch, and one on an exception.

Differences from Lightning's ``ModelCheckpoint``: the default monitor is the metric of the task,
``last.ckpt`` is written after every epoch even if the epoch was not the best, validations within an
epoch can save a best checkpoint, a resumed run keeps the best score of the original run, and files
are written atomically.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from src import files
from src.callbacks.graceful_stop import GracefulStop
from src.callbacks.run_folder import is_dry_run
from src.callbacks.terminate_on_nan import (
    NonFiniteError,
    has_finite_weights,
    is_checked,
    require_finite_weights,
    warn_about_weights,
)
from src.distributed.checkpoints import consolidate, is_sharded_checkpoint, remove, replace
from src.errors import UserError
from src.serialization import check_finite, read_checkpoint
from src.stopping import Interrupted
from src.tasks import BaseTask

_BY_EPOCH, _BY_STEP, _BY_BOTH = "best-{epoch}", "best-{step}", "best-{epoch}-{step}"


class Checkpoint(ModelCheckpoint):
    """Write ``best-epoch=N.ckpt`` and ``last.ckpt`` into ``checkpoints`` of the run folder.

    If the validation interval is counted in batches across epochs (``check_val_every_n_epoch:
    null``), the best is ``best-step=N.ckpt``; with several validations per epoch, it is
    ``best-epoch=N-step=M.ckpt``.

    Args:
        monitor: Logged metric that decides which epoch is best; default is that of the task
            (classification: ``val/top1``).
        mode: Whether a larger or a smaller value is better; default is that of the task.
        save_top_k: Number of best checkpoints to keep; 0 keeps none, -1 all.
        every_n_epochs: Epochs between checkpoints.
        every_n_train_steps: Also write ``last.ckpt`` after this many optimizer steps; useful for
            long epochs.
        save_on_exception: Write ``last.ckpt`` when a signal (Ctrl-C, SIGTERM, SIGHUP) or an error
            stops training. After an error, only runs on a single device save, because other ranks
            may not be reachable.
        filename: Name of the best checkpoints, without extension; default as above.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        save_on_exception: bool = True,
        filename: str | None = None,
    ) -> None:
        super().__init__(
            filename=filename or _BY_EPOCH,
            monitor=monitor or "val/loss",
            mode=mode or "min",
            save_last=True,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            save_on_exception=save_on_exception,
            enable_version_counter=False,
        )
        self.requested_monitor, self.requested_mode = monitor, mode
        self.last_every_n_steps = every_n_train_steps
        self._has_validated = False
        self._latest_step = 0
        self._first_step = math.inf
        self._step_in_last: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Use the monitor and mode of the task unless they were given."""
        self._first_step = math.inf  # until training starts
        if isinstance(pl_module, BaseTask):
            self.monitor = self.requested_monitor or pl_module.monitor
            self.mode = self.requested_mode or pl_module.monitor_mode
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        if self.filename == _BY_EPOCH and trainer.check_val_every_n_epoch is None:
            self.filename = _BY_STEP
        elif self.filename == _BY_EPOCH and trainer.val_check_interval != 1.0:
            self.filename = _BY_BOTH
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the first step of this run; there is nothing to save before it."""
        super().on_train_start(trainer, pl_module)
        self._first_step, self._step_in_last = trainer.global_step, None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write ``last.ckpt`` in the middle of an epoch if ``every_n_train_steps`` is set."""
        every, step = self.last_every_n_steps, trainer.global_step
        # While gradients are accumulated, global_step does not change.
        is_due = every and step % every == 0 and step != self._latest_step
        self._latest_step = step
        if is_due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best and the last checkpoint of the epoch, after its validation."""
        if is_dry_run(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if (trainer.current_epoch + 1) % self._every_n_epochs != 0:
            if _is_stopping(trainer) and self.save_on_exception:
                self._save_last(trainer, candidates)
            return
        # If not every epoch is validated, the candidates contain values of an earlier epoch.
        is_new = self._has_validated or not trainer.enable_validation
        if is_new:
            self._save_best(trainer, candidates)
        self._has_validated = False
        self._save_last(trainer, candidates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best checkpoint after a validation within an epoch.

        After the last batch, `on_train_epoch_end` writes it instead. Resuming from a file written
        within an epoch is not exact, because the validation counts as unfinished.
        """
        is_fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not is_fitting or is_dry_run(trainer):
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._has_validated = True
            return
        self._save_best(trainer, self._monitor_candidates(trainer))

    def _save_best(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Write the best checkpoint, unless the weights or the metric are not finite."""
        value = candidates.get(self.monitor or "")
        if value is None or not has_finite_weights(trainer.lightning_module):
            return
        if torch.isfinite(value).all():
            self._save_topk_checkpoint(trainer, candidates)
        else:
            rank_zero_warn(f"{self.monitor} is {float(value)}, so this epoch cannot be the best.")

    def _save_last(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Write ``last.ckpt``; stop the run instead if its weights are not finite."""
        if not has_finite_weights(trainer.lightning_module):
            if is_checked(trainer):
                require_finite_weights(trainer.lightning_module)
            warn_about_weights("last.ckpt")
        self._save_last_checkpoint(trainer, candidates)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save the progress since the last checkpoint."""
        if not self._can_save(trainer, exception):
            return
        if trainer.validating:
            _repeat_validation(trainer.fit_loop.epoch_loop.val_loop.batch_progress)
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _can_save(self, trainer: Trainer, exception: BaseException) -> bool:
        """Whether there is new progress and the training state is consistent."""
        if not self.save_on_exception or is_dry_run(trainer) or trainer.sanity_checking:
            return False
        if isinstance(exception, NonFiniteError):
            return False  # the previous checkpoint has finite weights
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step <= self._first_step:
            return False
        is_together = isinstance(exception, Interrupted) and exception.agreed
        if trainer.world_size > 1 and not is_together:
            return False
        stop = GracefulStop.of(trainer)
        if stop is not None and stop.is_updating:
            return False
        return trainer.validating or trainer.global_step != self._step_in_last

    def _save_last_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._step_in_last = trainer.global_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of the best checkpoints, also from another run folder.

        The paths in the file are only used to compare scores with earlier checkpoints.

        Raises:
            UserError: If the record of the best checkpoints is damaged.
        """
        scores = _known_scores(state_dict)
        restored: dict[str, Any] = {
            "dirpath": self.dirpath,
            "best_k_models": scores,
            "last_model_path": "",
        }
        if scores:
            best, worst = (max, min) if self.mode == "max" else (min, max)
            first, last = (
                best(scores, key=scores.__getitem__),
                worst(scores, key=scores.__getitem__),
            )
            restored |= {"best_model_path": first, "best_model_score": scores[first]}
            restored |= {"kth_best_model_path": last, "kth_value": scores[last]}
        super().load_state_dict(state_dict | restored)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Whether to delete a checkpoint; only those inside the folder of this run are deleted."""
        if not super()._should_remove_checkpoint(trainer, previous, current):
            return False
        if "://" in previous:
            return previous.startswith(f"{self.dirpath}/") and ".." not in previous.split("/")
        folder, path = Path(str(self.dirpath)).resolve(), Path(previous)
        return is_checkpoint(path) and path.parent.resolve().is_relative_to(folder)


def _known_scores(state: dict[str, Any]) -> dict[str, Tensor]:
    """Scores of the best checkpoints by path."""
    scores = state.get("best_k_models", {})
    texts = [state.get("best_model_path", ""), state.get("kth_best_model_path", "")]
    is_valid = isinstance(scores, dict) and all(
        isinstance(path, str) and isinstance(score, Tensor) and _is_number(score)
        for path, score in scores.items()
    )
    if not is_valid or not all(isinstance(text, str) for text in texts):
        raise UserError(
            "Cannot resume from the checkpoint: its record of the best checkpoints is damaged. Use"
            " another checkpoint of the run."
        )
    return {path: score.reshape(()) for path, score in scores.items()}


def _is_number(score: Tensor) -> bool:
    """Whether a tensor (possibly sparse, meta or complex) is a single real number."""
    is_plain = score.layout == torch.strided and score.device.type != "meta"
    return is_plain and score.numel() == 1 and not score.is_complex() and not score.is_quantized


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint file or a complete checkpoint folder, and not a link."""
    return not path.is_symlink() and (path.is_file() or is_sharded_checkpoint(path))


def _is_stopping(trainer: Trainer) -> bool:
    stop = GracefulStop.of(trainer)
    return stop is not None and stop.is_agreed


def _repeat_validation(progress: Any) -> None:
    """Reset the progress of an interrupted validation, so that resuming repeats it.

    Checkpoints do not contain metric states, so Lightning would continue with the next batch but
    without the results of the previous ones.
    """
    before = progress.total.completed - progress.current.completed
    for counts, start in ((progress.total, before), (progress.current, 0)):
        counts.ready = counts.started = start + 1
        counts.processed = counts.completed = start
    progress.is_last_batch = False


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint IO with atomic writes, so that a killed run never leaves a partial file.

    Checkpoints are deleted only in folders that this object has written to, regardless of the paths
    that a callback has read from a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save ``checkpoint`` to ``path``; remote paths are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        is_folder = is_sharded_checkpoint(path)  # written by a sharding strategy
        target = path.with_name(f"{path.name}.new") if is_folder else path
        files.write_with(target, lambda file: torch.save(checkpoint, file))
        self._folders.add(path.parent.resolve())
        if is_folder:
            replace(target, path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file or folder if this object has written to its parent folder."""
        if "://" in str(path):
            super().remove_checkpoint(path)
            return
        path = Path(path)
        is_known = path.parent.resolve() in self._folders
        if is_checkpoint(path) and ".." not in path.parts and (is_known or path.is_dir()):
            remove(path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint file, or consolidate a sharded checkpoint.

        Raises:
            UserError: If it cannot be read, or is not a checkpoint of a training run.
        """
        path = Path(path)
        if is_sharded_checkpoint(path):
            return consolidate(path)
        content = read_checkpoint(path)
        check_finite(content, path)
        # The optimizer keeps these tensors, and the mapped file may change during training.
        states = content.get("optimizer_states", [])
        for values in (values for state in states for values in state["state"].values()):
            values |= {k: v.clone() for k, v in values.items() if isinstance(v, torch.Tensor)}
        return content
