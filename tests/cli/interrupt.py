"""A callback that interrupts a prediction, to test which files it leaves."""

from lightning.pytorch import Callback


class InterruptSecondBatch(Callback):
    """Raise KeyboardInterrupt or an error when the second batch starts."""

    def __init__(self, fault: bool = False) -> None:
        self.fault = fault

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            raise (RuntimeError("out of memory") if self.fault else KeyboardInterrupt)
