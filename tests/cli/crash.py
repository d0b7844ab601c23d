"""Callback that stops its process the hard way; named in a configuration by the resume tests."""

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
