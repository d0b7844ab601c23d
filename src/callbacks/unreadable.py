"""Which images ``predict`` could not read: named at the end, when the others have been written."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from src.decoding import MAX_PIXELS, BrokenImageError, decode

_MAX_NAMED = 10


class UnreadableImages(Callback):
    """Collect the images to predict that could not be decoded, from all ranks.

    Exchanging them is also what makes the ranks wait until the first one has written its tables, so
    this callback comes after the writers.

    Attributes:
        paths: The files, sorted; known after ``predict``.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._max_pixels = MAX_PIXELS

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget those of an earlier prediction."""
        self.paths = []

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring those of all ranks together."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._max_pixels = getattr(data, "max_pixels", MAX_PIXELS)
        self.paths = sorted(set(gather(list(getattr(data, "unreadable", [])))))

    def sentence(self) -> str:
        """What could not be read and why, for the user."""
        lines = [_reason(path, self._max_pixels) for path in self.paths[:_MAX_NAMED]]
        more = len(self.paths) - _MAX_NAMED
        lines += [f"and {more} more"] if more > 0 else []
        count = len(self.paths)
        subject = "1 image" if count == 1 else f"{count} images"
        return (
            f"{subject} could not be read and {'has' if count == 1 else 'have'} no prediction; what"
            " could be read has been predicted and written. Replace or remove, or accept this with "
            "--data.broken_images skip:\n  " + "\n  ".join(lines)
        )


def is_predicting(trainer: Trainer) -> bool:
    """Whether the trainer predicts, also after an exception has stopped it."""
    return trainer.state.fn == TrainerFn.PREDICTING


def gather(found: list[Any]) -> list[Any]:
    """The items of all ranks; all ranks must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return found
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, found)
    return [item for part in parts for item in part]


def of_this_rank(trainer: Trainer, name: str) -> str:
    """Name of a file that a rank writes alone when it is stopped: ``predictions_rank1.csv``."""
    stem, ending = name.rsplit(".", 1)
    return name if trainer.global_rank == 0 else f"{stem}_rank{trainer.global_rank}.{ending}"


def _reason(path: str, max_pixels: int) -> str:
    try:
        decode(path, max_pixels=max_pixels)
    except BrokenImageError as error:
        return str(error)
    return f"The image {path} could not be read at its turn, but can be now."
