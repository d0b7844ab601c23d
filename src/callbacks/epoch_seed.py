"""Reproducible training steps, so that a resumed run continues with the same data and seeds.

All random generators are seeded from (seed, epoch, rank) at the start of an epoch, and from (seed,
epoch, rank, batch) before each further batch. Augmentation, mixup and drop path therefore do not
depend on earlier steps. A run that is resumed in the middle of an epoch skips the batches that were
already used, also if the batch size was different because of another number of ranks.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from src.callbacks.run_folder import tell
from src.errors import UserError


def seed_all(seed: int, epoch: int, rank: int, batch: int = 0) -> None:
    """Seed Python, NumPy and PyTorch with independent streams."""
    words = np.random.SeedSequence([seed, epoch, rank, batch]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  timm's Mixup draws from the global generator
    torch.manual_seed(int(words[2]))


class EpochSeed(Callback):
    """Seed every step of training.

    Args:
        seed: Any non-negative number.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._images = self._saved_images = 0  # per batch, over all ranks; 0 if unknown

    def state_dict(self) -> dict[str, int]:
        """Global batch size, the unit of the progress in a checkpoint."""
        return {"images_per_batch": self._images}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the global batch size of the checkpoint."""
        former = state_dict.get("pictures_per_batch", 0)  # name in earlier versions
        self._saved_images = state_dict.get("images_per_batch", former)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip the used batches if the checkpoint was written in the middle of an epoch."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        self._images = _images_per_batch(trainer)
        # A checkpoint written after a step counts its batch as processed, not yet as completed.
        has_started = progress.current.processed > 0 or trainer.fit_loop.restarted_mid_epoch
        is_within = has_started and not progress.is_last_batch
        if trainer.ckpt_path is not None and is_within:
            self._recount(progress)
            self._start(trainer)
            self._skip(trainer, progress.current.processed)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the epoch that starts."""
        self._start(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Seed the next batch and its step."""
        self._seed(trainer, batch_idx + 1)

    def _seed(self, trainer: Trainer, batch: int) -> None:
        seed_all(self.seed, trainer.current_epoch, trainer.global_rank, batch)

    def _start(self, trainer: Trainer) -> None:
        self._seed(trainer, 0)
        fit_loop = trainer.fit_loop
        # Lightning has no public API to restart the data loader of a training epoch.
        for loader in _loaders(fit_loop._combined_loader):
            # Persistent workers would keep the random generators of earlier epochs.
            loader._iterator = None
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(trainer.current_epoch)
        if trainer.current_epoch == 0 or fit_loop.is_resuming or fit_loop.epoch_loop.restarting:
            # Lightning would use an iterator that it created before the checkpoint was loaded.
            iter(_fetcher(trainer))

    def _recount(self, progress: Any) -> None:
        """Convert the progress to the current batch size."""
        before, now = self._saved_images, self._images
        if before == now or not before or not now:
            return
        used = progress.current.processed
        batches, rest = divmod(used * before, now)
        if rest:
            raise UserError(
                f"The checkpoint was written after {used} batches of {before} images, which is not"
                f" a whole number of batches of {now} images. Use a number of devices and a"
                " data.batch_size that give a divisor, or a checkpoint from the end of an epoch."
            )
        for name in ("ready", "started", "processed", "completed"):
            for counts in (progress.current, progress.total):
                setattr(counts, name, getattr(counts, name) + batches - used)

    def _skip(self, trainer: Trainer, num_batches: int) -> None:
        if not num_batches:
            return
        tell(skipping(num_batches, trainer.current_epoch))
        loaders = _loaders(trainer.fit_loop._combined_loader)
        samplers: list[Any] = [loader.sampler for loader in loaders]
        if samplers and all(hasattr(sampler, "skip_steps") for sampler in samplers):
            # The order of these is computed, so that nothing has to be loaded.
            for loader, sampler in zip(loaders, samplers, strict=True):
                sampler.skip_steps(num_batches)
                loader._iterator = None
            iter(_fetcher(trainer))
        else:
            batches = _fetcher(trainer).iterator
            for _ in range(num_batches):
                next(batches)
        self._seed(trainer, num_batches)


def skipping(num_batches: int, epoch: int) -> str:
    """Line about the batches that a resumed epoch has used before."""
    skipped = "batch" if num_batches == 1 else f"{num_batches} batches"
    were = "was" if num_batches == 1 else "were"
    return f"Skipping the {skipped} of epoch {epoch} that {were} already used"


def _images_per_batch(trainer: Trainer) -> int:
    sizes = [loader.batch_size or 0 for loader in _loaders(trainer.fit_loop._combined_loader)]
    return sum(sizes) * trainer.world_size


def _fetcher(trainer: Trainer) -> Any:
    return trainer.fit_loop._data_fetcher


def _loaders(combined: Any) -> list[DataLoader[Any]]:
    return [loader for loader in combined.flattened if isinstance(loader, DataLoader)]
