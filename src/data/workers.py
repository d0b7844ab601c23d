"""Worker processes that leave the signals of their group to the process that has started them.

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

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = {getattr(signal, name) for name in _NAMES if hasattr(signal, name)}
_SECONDS = 1.0


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals, which a process inherits that is started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only() -> None:
    """Make this worker end when its parent wants so or is gone, and by no other signal.

    Call it first in a worker; ``initializer`` of a pool.
    """
    process = multiprocessing.parent_process()
    # Where it cannot wait, a worker looks for its parent between two batches (PyTorch).
    if process is not None and hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        given = (process.pid, os.getppid())
        threading.Thread(target=_follow_parent, args=given, daemon=True).start()


def _follow_parent(main: int | None, parent: int) -> None:
    """Wait for SIGTERM of the parent, which ends workers with it that do not end themselves.

    Args:
        main: Process that has asked for the worker.
        parent: Process that has forked it: the same one, or multiprocessing's fork server.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait(_SIGNALS, _SECONDS)
        if received and received.si_signo == signal.SIGTERM and received.si_pid == main:
            break
    os._exit(0)
