"""Loader whose workers leave the signals of their group to the main process."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

from src.data.workers import blocked_signals, obey_parent_only


class Loader(DataLoader[Any]):
    """``DataLoader`` whose workers are started with the signals of their group blocked.

    Give it `start_worker` as ``worker_init_fn``.
    """

    def __iter__(self) -> Any:
        with blocked_signals():
            return super().__iter__()


def start_worker(number: int) -> None:
    """Seed a worker as Lightning does, and let it obey its parent only."""
    if os.environ.get("PL_SEED_WORKERS") == "1":
        pl_worker_init_function(number)
    obey_parent_only()
