"""Loader whose workers ignore signals that are sent to the process group."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

from src.data.workers import blocked_signals, obey_parent_only


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
