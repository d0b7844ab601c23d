"""Speed of a training run and the time that it will still take."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Trainer


class Pace:
    """Clock of a training run, in this process.

    The speed is that of the current epoch, with data loading and without validation; its first
    batch, for which the workers start, counts only if it is the only one. The time left is
    extrapolated from the time of all batches since the first one after the start or resume, with
    validation.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Training starts, possibly within an epoch of a resumed run."""
        self._start = self._second_start = time.monotonic()
        self._batches = 0
        self.start_epoch(is_whole=False)

    def start_epoch(self, *, is_whole: bool = True) -> None:
        """An epoch starts; ``is_whole`` is false if only the rest of it is trained."""
        self._epoch_start = self._previous = time.monotonic()
        self._first, self._rest = (0, 0.0), (0, 0.0)
        self._is_whole = is_whole

    def add(self, images: int) -> None:
        """A batch of all devices is finished."""
        now = time.monotonic()
        seconds, self._previous = now - self._previous, now
        self._batches += 1
        if self._batches == 1:
            self._second_start = now
        if self._first == (0, 0.0):
            self._first = images, seconds
        else:
            self._rest = self._rest[0] + images, self._rest[1] + seconds

    def pause(self) -> None:
        """A validation is finished, which is not part of the speed."""
        self._previous = time.monotonic()

    @property
    def has_trained(self) -> bool:
        """Whether a batch of this epoch is finished, since the resume in a resumed run."""
        return self._first != (0, 0.0)

    @property
    def images_per_second(self) -> float | None:
        """Images per second of this epoch; ``None`` before its first batch."""
        images, seconds = self._rest if self._rest[0] else self._first
        return images / seconds if images and seconds else None

    @property
    def epoch_time(self) -> str:
        """Time since the epoch started, or since it was resumed."""
        seconds = time.monotonic() - self._epoch_start
        return f"{seconds:.1f} s" + ("" if self._is_whole else " since the resume")

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Estimated time until the end of training; ``None`` if unknown, or if none is left."""
        remaining = remaining_batches(trainer)
        if not remaining or not self._batches:
            return None
        if self._batches == 1:
            return (time.monotonic() - self._start) * remaining
        return (time.monotonic() - self._second_start) / (self._batches - 1) * remaining


def remaining_batches(trainer: Trainer) -> float | None:
    """Batches until ``max_epochs`` or ``max_steps``; ``None`` if neither is a limit."""
    limits: list[float] = []
    per_epoch = trainer.num_training_batches
    if trainer.max_epochs not in (None, -1) and math.isfinite(per_epoch):
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        epochs = int(trainer.max_epochs or 0) - trainer.current_epoch
        limits.append(epochs * per_epoch - done)
    if trainer.max_steps not in (None, -1):
        steps = trainer.max_steps - trainer.global_step
        limits.append(steps * trainer.accumulate_grad_batches)
    return max(0.0, min(limits)) if limits else None


def readable_time(seconds: float) -> str:
    """A duration such as ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def number_of_images(batch: Any) -> int:
    """Number of images of a batch of a data module.

    Args:
        batch: Its ``image`` is counted, or its ``label`` if it has cached features instead.

    Returns:
        The number; 0 for a batch of another structure, whose images cannot be counted.
    """
    found = (batch[key] for key in ("image", "label") if isinstance(batch, dict) and key in batch)
    return len(next(found, ()))
