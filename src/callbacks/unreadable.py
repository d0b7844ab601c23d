"""Report of the images that ``predict`` could not read, after the others are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from src.callbacks.run_folder import run_folder
from src.decoding import MAX_PIXELS, BrokenImageError, decode
from src.errors import UserError, counted
from src.runs import CONFIG

_MAX_NAMED = 10


class UnreadableImages(Callback):
    """Collect the unreadable images of all ranks in ``predict``.

    Gathering them also makes all ranks wait until rank 0 has written its tables, so this callback
    comes after the writers.

    Attributes:
        paths: The files, sorted; available after ``predict``.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._max_pixels = MAX_PIXELS

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the files of an earlier prediction."""
        self.paths = []

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the files of all ranks.

        Raises:
            UserError: If no image could be read, on all ranks; the run then leaves no folder.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._max_pixels = getattr(data, "max_pixels", MAX_PIXELS)
        self.paths = sorted(set(gather(list(getattr(data, "unreadable", [])))))
        images = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "paths", ())
        if self.paths and len(self.paths) == len(set(images)):
            if trainer.is_global_zero:
                (run_folder(trainer) / CONFIG).unlink(missing_ok=True)  # see RunFolder
            raise UserError(
                with_reasons(
                    "Nothing was predicted: no image could be read", self.paths, self._max_pixels
                )
            )

    def message(self, *, is_error: bool) -> str:
        """Which images could not be read, and why.

        Args:
            is_error: Whether to say what to do, or the user has asked to skip them.
        """
        count = len(self.paths)
        text = (
            f"{counted(count, 'image')} could not be read and {'has' if count == 1 else 'have'} no"
            " prediction; all other predictions have been written"
        )
        if is_error:
            text += ". Replace or remove these files, or use --data.broken_images skip"
        return with_reasons(text, self.paths, self._max_pixels)


def with_reasons(text: str, paths: Sequence[str], max_pixels: int) -> str:
    """A text, followed by the first unreadable files, each with its reason.

    Args:
        text: What the files have in common, without a full stop.
        paths: The files.
        max_pixels: Larger images count as unreadable.
    """
    lines = [_reason(path, max_pixels) for path in paths[:_MAX_NAMED]]
    more = len(paths) - _MAX_NAMED
    lines += [f"and {more} more"] if more > 0 else []
    return f"{text}:\n  " + "\n  ".join(lines)


def is_predicting(trainer: Trainer) -> bool:
    """Whether the trainer is predicting, also after an exception."""
    return trainer.state.fn == TrainerFn.PREDICTING


def gather(found: list[Any]) -> list[Any]:
    """The items of all ranks; must be called on all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return found
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, found)
    return [item for part in parts for item in part]


def rank_file_name(trainer: Trainer, name: str) -> str:
    """Name of a file that only this rank writes, for example ``predictions_rank1.csv``."""
    stem, extension = name.rsplit(".", 1)
    return name if trainer.global_rank == 0 else f"{stem}_rank{trainer.global_rank}.{extension}"


def _reason(path: str, max_pixels: int) -> str:
    try:
        decode(path, max_pixels=max_pixels)
    except BrokenImageError as error:
        return str(error)
    return f"The image {path} could not be read before, but can be read now."
