"""Callbacks for the runs in these tests."""

import json
import os
import resource
import signal
import threading
from pathlib import Path

import torch
from lightning.pytorch import Callback


class LossCurve(Callback):
    """Write the loss of every optimizer step, averaged over ranks and accumulated batches.

    Args:
        path: JSON file with the loss of each step.
    """

    def __init__(self, path: str) -> None:
        self.path, self.parts, self.curve = Path(path), [], {}

    def on_train_batch_end(self, trainer, *_: object) -> None:
        loss = trainer.callback_metrics["train/loss"].double()
        self.parts.append(trainer.strategy.reduce(loss, reduce_op="mean").item())
        if (
            trainer.global_step not in self.curve
            and len(self.parts) == trainer.accumulate_grad_batches
        ):
            self.curve[trainer.global_step] = sum(self.parts) / len(self.parts)
            self.parts = []
            if trainer.global_rank == 0:
                part = self.path.with_suffix(".part")  # the rank may be killed at any moment
                part.write_text(json.dumps(self.curve))
                part.replace(self.path)


class KillRank(Callback):
    """Send SIGKILL to one rank after an optimizer step.

    Args:
        rank: The rank.
        step: The optimizer step.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer, *_: object) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KillWorker(Callback):
    """Send SIGKILL to a data loader worker of one rank after an optimizer step.

    Args:
        rank: The rank.
        step: The optimizer step.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer, *_: object) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            (loader,) = trainer.fit_loop._combined_loader.flattened
            os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)


class FullDisk(Callback):
    """Limit the file size of one rank from a step on.

    Args:
        rank: The rank.
        step: The optimizer step.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, *_: object) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


class NoProposals(Callback):
    """Remove all proposals and ground-truth boxes of one rank from a step on.

    Args:
        rank: The rank.
        step: The optimizer step.
    """

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, task, batch, batch_idx: int) -> None:
        if trainer.global_rank != self.rank or trainer.global_step < self.step:
            return
        rpn = task.network.rpn_head
        propose = type(rpn).propose

        def nothing(*arguments, **named):
            for found in (proposals := propose(rpn, *arguments, **named)):
                found.boxes, found.scores = found.boxes[:0], found.scores[:0]
            return proposals

        rpn.propose = nothing
        for target in batch["target"]:
            for key, value in target.items():
                target[key] = value[:0]
        assert all(torch.numel(target["boxes"]) == 0 for target in batch["target"])


class RecordIds(Callback):
    """Append the step and the sample ids of every training batch to ``<folder>/<rank>.jsonl``.

    Args:
        folder: Existing folder.
        kill_before: Send SIGKILL to this rank before the batch of this step.
        kill_after: Send SIGKILL to this rank after so many seconds of training, if it is the first.
    """

    def __init__(
        self, folder: str, kill_before: int | None = None, kill_after: float | None = None
    ) -> None:
        self.folder, self.kill_before, self.kill_after = Path(folder), kill_before, kill_after

    def on_train_start(self, trainer, *_: object) -> None:
        if self.kill_after is not None and trainer.global_rank == 0:
            kill = (os.getpid(), signal.SIGKILL)
            timer = threading.Timer(self.kill_after, os.kill, kill)
            timer.daemon = True
            timer.start()

    def on_train_batch_start(self, trainer, task, batch, batch_idx: int) -> None:
        if trainer.global_step == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch["id"].tolist()]) + "\n")
