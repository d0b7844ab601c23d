"""Check that monitored metrics are logged, as early as possible."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from src.callbacks.checkpoint import Checkpoint
from src.callbacks.run_folder import is_dry_run
from src.errors import UserError
from src.tasks import BaseTask


class Monitor(NamedTuple):
    """A monitored metric.

    Attributes:
        owner: Setting that names the metric.
        name: Name of the logged metric.
        mode: ``min`` or ``max``.
    """

    owner: str
    name: str
    mode: str


_UNSUITABLE = {
    StochasticWeightAveraging: (
        "is not supported, because it copies the task before the network is built; use the EMA"
        " callback (configs/callbacks/ema.yaml)."
    ),
    ModelPruning: "is not supported, because it needs the weights before the network is built.",
    BackboneFinetuning: (
        "is not supported, because it freezes the backbone before the network is built; use"
        " model.freeze, or layer_decay."
    ),
}
_MIN_RATES = 13
"""Rates that LearningRateFinder needs: it drops the first ten and the last, and needs two."""


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse Lightning callbacks that do not work with networks built in ``configure_model``.

    Raises:
        UserError: If there is such a callback.
    """
    for callback in callbacks:
        for kind, reason in _UNSUITABLE.items():
            if isinstance(callback, kind):
                raise UserError(f"{type(callback).__name__} {reason}")


class MonitorCheck(Callback):
    """Raise an error if a monitored metric is not logged, or the run is too short for a finder.

    The validation metrics of a task are known before training. Training losses and the metrics of
    other callbacks are known after the first validation or epoch.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()  # metrics that were logged

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the validation metrics of the task, and finders with the number of steps.

        Raises:
            UserError: If a monitored metric is not logged, or a finder needs more steps.
        """
        self._seen = set()
        if is_dry_run(trainer):
            return
        _check_finders(trainer)
        if not isinstance(pl_module, BaseTask):
            return
        known = pl_module.validation_names()
        for monitor in _monitors(trainer):
            if known and _is_closed(trainer, pl_module, monitor.name) and monitor.name not in known:
                raise UserError(_unknown(monitor, known))
            _warn_about_mode(monitor, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the metrics logged until the first validation.

        Within an epoch, only validation metrics are checked; the others follow at its end.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            is_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            self._compare(trainer, "" if is_end else "val/", but="train/")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check training metrics; without validation, all metrics."""
        self._compare(trainer, "train/" if trainer.enable_validation else "")

    def _compare(self, trainer: Trainer, prefix: str, but: str | None = None) -> None:
        logged = set(trainer.callback_metrics)
        for monitor in () if is_dry_run(trainer) else _monitors(trainer):
            name = monitor.name
            if name in self._seen or not name.startswith(prefix) or (but and name.startswith(but)):
                continue
            if name not in logged:
                raise UserError(_unknown(monitor, logged))
            self._seen.add(name)


def _monitors(trainer: Trainer) -> Iterator[Monitor]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, Checkpoint):
            if callback.requested_monitor is not None:
                yield Monitor("checkpoint.monitor", callback.requested_monitor, callback.mode)
        elif isinstance(callback, (ModelCheckpoint, EarlyStopping)) and callback.monitor:
            yield Monitor(f"{type(callback).__name__}.monitor", callback.monitor, callback.mode)
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            yield Monitor("ReduceLROnPlateau.monitor", str(config.monitor), config.scheduler.mode)


def _check_finders(trainer: Trainer) -> None:
    """Refuse a ``LearningRateFinder`` that tries too few rates, or more than the run has steps."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if not isinstance(callback, LearningRateFinder):
            continue
        tried, steps = callback._num_training_steps, trainer.estimated_stepping_batches
        if not _MIN_RATES <= tried <= steps:
            raise UserError(
                f"LearningRateFinder tries {tried} learning rates (num_training_steps), one per"
                f" step, and the run has {steps} steps. Set num_training_steps to at least"
                f" {_MIN_RATES} and at most the number of steps; a larger trainer.max_epochs gives"
                " more of them."
            )


def _is_closed(trainer: Trainer, task: BaseTask, name: str) -> bool:
    """Whether only the task can log a metric, so that it is known before training."""
    packages = ("src.", "lightning.")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    parts = (task, *callbacks)
    has_other = any(not type(part).__module__.startswith(packages) for part in parts)
    return not has_other and not name.startswith(("train/", "lr-", "test/"))


def _unknown(monitor: Monitor, known: Collection[str]) -> str:
    names = sorted(name for name in known if not name.endswith(("_raw", "_step")))
    close = difflib.get_close_matches(monitor.name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"{monitor.owner} is {monitor.name!r}, which this run does not log.{hint} Logged metrics"
        f" are {', '.join(names)}."
    )


def _warn_about_mode(monitor: Monitor, task: BaseTask) -> None:
    if monitor.name not in task.validation_names():
        return
    expected = "min" if monitor.name in task.validation_losses() else "max"
    if monitor.mode != expected:
        better = "smaller" if expected == "min" else "larger"
        owner = monitor.owner.removesuffix(".monitor")
        rank_zero_warn(
            f"{owner} monitors the {monitor.mode}imum of {monitor.name}, but {better} values are"
            f" better. Set its mode to {expected}."
        )
