"""Worker processes that ignore signals of the process group and end with their parent.

``timeout``, SLURM, systemd, docker and the terminal send a signal to all processes of a run. The
main process then shuts down cleanly, for which it may still need its workers.
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
    """Block the signals; processes that are started in this context inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only() -> None:
    """End this worker when its parent asks for it or is gone, and ignore other signals.

    Call it first in a worker, for example as ``initializer`` of a pool.
    """
    process = multiprocessing.parent_process()
    # Where `sigtimedwait` is missing, PyTorch's workers look for their parent between batches.
    if process is not None and hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        given = (process.pid, os.getppid())
        threading.Thread(target=_follow_parent, args=given, daemon=True).start()


def _follow_parent(main: int | None, parent: int) -> None:
    """Exit on SIGTERM from the main process, or when the parent is gone.

    The main process sends SIGTERM to workers that do not end by themselves.

    Args:
        main: Process that the worker was started for.
        parent: Process that has forked it: the same one, or multiprocessing's fork server.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait(_SIGNALS, _SECONDS)
        if received and received.si_signo == signal.SIGTERM and received.si_pid == main:
            break
    os._exit(0)
