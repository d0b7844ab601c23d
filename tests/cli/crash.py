"""Callbacks that make a run fail, used in configurations of tests."""

import os
import signal

from lightning.pytorch import Callback


class KillAt(Callback):
    """Send SIGKILL to this process after an optimizer step.

    Args:
        step: Number of the step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class NaNOnRank(Callback):
    """Make the loss of one rank NaN.

    Args:
        rank: The rank.
        step: First optimizer step with a NaN loss.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_start(self, trainer, pl_module) -> None:
        original = pl_module.training_step

        def training_step(*arguments: object):
            loss = original(*arguments)
            is_broken = trainer.global_rank == self.rank and trainer.global_step >= self.step
            return loss * float("nan") if is_broken else loss

        pl_module.training_step = training_step
