"""Data loader whose workers ignore signals to the process group, and its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

from src.data.workers import blocked_signals, obey_parent_only
from src.errors import UserError


@dataclass(frozen=True)
class LoaderOptions:
    """Settings of data loaders.

    Attributes:
        prefetch_factor: Batches that each worker prepares in advance. Each batch takes shared
            memory.
        pin_memory: Copy batches to page-locked memory, from which a GPU reads while it computes;
            null does so if there is a GPU.
        persistent_workers: Keep the workers of validation and test between epochs. Training
            workers are restarted every epoch, with new seeds.

    Raises:
        UserError: If a value is out of range.
    """

    prefetch_factor: int = 4
    pin_memory: bool | None = None
    persistent_workers: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.prefetch_factor < 1:
            raise UserError(
                "data.loading.prefetch_factor accepts an integer of at least 1, got "
                f"{self.prefetch_factor!r}."
            )

    def arguments(self, num_workers: int) -> dict[str, Any]:
        """Arguments of a ``DataLoader`` with a number of workers."""
        pin = torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
        own: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin}
        if num_workers:  # PyTorch refuses the others without workers
            own["prefetch_factor"] = self.prefetch_factor
            own["persistent_workers"] = self.persistent_workers
        return own


LOADING = LoaderOptions()
"""The default."""


class Loader(DataLoader[Any]):
    """``DataLoader`` whose workers are started with signals of the process group blocked.

    Its ``worker_init_fn`` must be `start_worker`.
    """

    def __iter__(self) -> Any:
        with blocked_signals():
            return super().__iter__()


def start_worker(number: int) -> None:
    """Seed a worker as Lightning does, and tie it to its parent."""
    if os.environ.get("PL_SEED_WORKERS") == "1":
        pl_worker_init_function(number)
    obey_parent_only()
