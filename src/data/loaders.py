"""Loader whose worker processes leave the signals of their group to the main process.

``timeout``, SLURM, systemd, docker and the terminal send a signal to all processes of a run. The
main process then ends the run in order, for which it may still need its workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = {getattr(signal, name) for name in _NAMES if hasattr(signal, name)}
_SECONDS = 1.0


class Loader(DataLoader[Any]):
    """``DataLoader`` whose workers are started with the signals of their group blocked.

    Give it `start_worker` as ``worker_init_fn``.
    """

    def __iter__(self) -> Any:
        with _blocked_signals():
            return super().__iter__()


def start_worker(number: int) -> None:
    """Seed a worker as Lightning does, and end it when its parent wants so or is gone."""
    if os.environ.get("PL_SEED_WORKERS") == "1":
        pl_worker_init_function(number)
    process = multiprocessing.parent_process()
    # Where it cannot wait, a worker looks for its parent between two batches (PyTorch).
    if process is not None and hasattr(signal, "sigtimedwait"):
        given = (process.pid, os.getppid())
        threading.Thread(target=_follow_parent, args=given, daemon=True).start()


def _follow_parent(main: int | None, parent: int) -> None:
    """Wait for SIGTERM of the parent, with which PyTorch ends a worker that does not end itself.

    Args:
        main: Process that has asked for the worker.
        parent: Process that has forked it: the same one, or multiprocessing's fork server.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait(_SIGNALS, _SECONDS)
        if received and received.si_signo == signal.SIGTERM and received.si_pid == main:
            break
    os._exit(0)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block the signals, which a process inherits that is started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
