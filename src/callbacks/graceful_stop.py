"""Stop a run gracefully after a signal, on all ranks at the same step.

Lightning handles SIGTERM with a collective operation inside the signal handler, which the other
ranks do not expect, and considers rank 0 only. Here every rank records its signal
(``src.stopping``), and the ranks agree after an optimizer step, after an evaluation batch and at
the end of an epoch. Then all of them raise `Interrupted`, and `Checkpoint` saves.

SIGUSR1, which SLURM can send before the time limit, stops a run in the same way, and the command
line requeues the job (``src.cli.slurm``).
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from src.distributed.agreement import Agreement
from src.stopping import Interrupted, active


class GracefulStop(Callback):
    """Stop at a point where the run can be resumed without loss; inactive without `StopSignals`.

    `install` adds it after all other callbacks, so that they have completed the step.

    Attributes:
        is_updating: Whether an optimizer step has started but its consequences (progress, EMA
            weights) are not complete. A checkpoint written meanwhile would be inconsistent.
        is_agreed: Whether the ranks have agreed to stop.
    """

    def __init__(self) -> None:
        self.is_updating = self.is_agreed = False
        self._agreement: Agreement | None = None
        self._first_step = 0

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Add the callback to a trainer and disable Lightning's SIGTERM handling."""
        trainer.callbacks.append(cls())  # type: ignore[attr-defined]
        trainer._signal_connector = _WithoutSigterm(trainer)

    @staticmethod
    def of(trainer: Trainer) -> GracefulStop | None:
        """The callback of a trainer, if there is one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((c for c in callbacks if isinstance(c, GracefulStop)), None)

    # ---------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state."""
        self.is_updating = self.is_agreed = False
        self._first_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Delay signals until the end of the step.

        The first step may take minutes if the network is compiled; a signal interrupts it.
        """
        self._hold(trainer, saves=trainer.global_step > self._first_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Do not stop before the step is complete."""
        self.is_updating = True
        self._wait()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop after an optimizer step, unless a validation or the end of the epoch follows.

        Resuming from here would skip that validation.
        """
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        self.is_updating = False
        self._hold(trainer, saves=True)
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if not loop._num_ready_batches_reached() and not loop._should_check_val_fx(fetcher):
            self._stop_if_agreed(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree, so that `Checkpoint` saves at the end of this epoch in any case."""
        self._agreement = None
        self._agree(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        if self.is_agreed:
            self._wait()
            raise Interrupted(agreed=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do not stop while a checkpoint is written."""
        self._wait()

    # -------------------------------------------------------------- evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delay signals until the end of a batch."""
        is_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._agreement = None  # batches take a different time than in training
        self._hold(trainer, saves=is_training)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch back to the timing of training steps."""
        self._agreement = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delay signals until the end of a batch."""
        self._hold(trainer, saves=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delay signals until the end of a batch."""
        self._hold(trainer, saves=False)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop after a batch."""
        self._stop_if_agreed(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop after a batch."""
        self._stop_if_agreed(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop after a batch."""
        self._stop_if_agreed(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop delaying signals, because there is nothing to save yet."""
        if (stops := active()) is not None:
            stops.release()

    # --------------------------------------------------------------------- end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take over the ranks launched by Lightning, which would kill them at once."""
        stops, launcher = active(), trainer.strategy.launcher
        if stops is None or not isinstance(exception, Interrupted):
            return
        if isinstance(launcher, _SubprocessScriptLauncher):
            stops.children = list(launcher.procs)
            launcher.procs.clear()  # the list that Lightning's observer uses

    def _hold(self, trainer: Trainer, *, saves: bool) -> None:
        if (stops := active()) is not None:
            stops.hold(saves=saves, waits=saves and trainer.world_size > 1)

    def _wait(self) -> None:
        if (stops := active()) is not None:
            stops.waits = True

    def _agree(self, trainer: Trainer) -> bool:
        stops = active()
        if stops is None:
            return False
        if trainer.world_size == 1:
            self.is_agreed = stops.received is not None
            return self.is_agreed
        if self._agreement is None:
            self._agreement = Agreement(trainer.strategy.root_device)
        self.is_agreed = self._agreement.reached(stops.received is not None)
        return self.is_agreed

    def _stop_if_agreed(self, trainer: Trainer) -> None:
        if self._agree(trainer):
            self._wait()
            raise Interrupted(agreed=True)


class _WithoutSigterm(_SignalConnector):
    """Lightning's signal handling without SIGTERM and without requeueing."""

    def _slurm_sigusr_handler_fn(self, signum: Any, _: FrameType) -> None:
        """Stop as after SIGTERM, and requeue the job afterwards."""
        stops = active()
        if stops is None:  # a trainer in a script or notebook
            super()._slurm_sigusr_handler_fn(signum, _)
            return
        stops.requeues = True
        signal.raise_signal(signal.SIGTERM)

    def _sigterm_notifier_fn(self, signum: Any, _: FrameType) -> None:
        """Leave SIGTERM to the handler of `StopSignals`, which Lightning also calls."""
        if active() is None:  # a trainer in a script or notebook
            super()._sigterm_notifier_fn(signum, _)
