"""Handle SIGINT (Ctrl-C), SIGTERM and SIGHUP: stop a command promptly without losing progress.

The first signal stops a command at once by raising `Interrupted`, unless `hold` was called. Then
the signal is only recorded in ``received``, and the callback ``GracefulStop`` ends the run at the
next point at which a checkpoint can be written. Another signal ends the process immediately.

Python runs signal handlers between two bytecode instructions of the main thread, so they do not run
while it waits in a collective operation or a long C++ call. Therefore a thread also listens for
signals (``signal.set_wakeup_fd``) and enforces the time limits.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 130
"""Exit code of an interrupted command, like that of a shell after Ctrl-C."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
PATIENCE = 5.0
"""Seconds after which a held signal is raised if that does not lose progress."""
LIMIT = 10.0
"""Seconds after which a process that has nothing to save is ended."""
_REPEATS = {signal.SIGINT: 0.3}
_OTHER_REPEATS = 5.0
"""Seconds within which further signals count as copies of the first: ``timeout`` sends two, and
torchrun and Lightning's launcher forward signals that the process group has already received."""


class Interrupted(BaseException):
    """A signal has asked this command to stop.

    Args:
        text: Message for the user.
        agreed: Whether all ranks raise it at the same step, so that they can still communicate.
    """

    def __init__(self, text: str = "", *, agreed: bool = False) -> None:
        super().__init__(text)
        self.agreed = agreed


class StopSignals:
    """Context manager that handles stop signals as described in the module docstring.

    They are held until `release`, so that none is raised while the manager itself starts. Signals
    that are ignored at the start (``nohup``, background jobs of a script) stay ignored.
    Outside the main thread, where Python does not allow signal handlers, it does nothing.

    Attributes:
        received: The first stop signal, if any.
        requeues: Whether SLURM has asked for the job to be requeued after the stop.
        waits: Whether a held signal is held without limit; otherwise it is raised after `PATIENCE`.
        children: Processes of other ranks launched by this process.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.children: list[subprocess.Popen[Any]] = []
        self.requeues = False
        self._since = 0.0
        self.waits = True
        self._held = self._forced = self._saves = False
        self._former: dict[signal.Signals, Any] = {}
        self._former_fd = -1
        self._ends: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        global _active
        is_main = threading.current_thread() is threading.main_thread()
        if os.name != "posix" or not is_main or _active is not None:
            return self
        _active = self
        self._held = True
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._handle)
        self._former_fd = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True, name="stop-signals").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _active
        if _active is not self or self._ends is None:
            return
        _active = None
        signal.set_wakeup_fd(self._former_fd)
        for number, former in self._former.items():
            signal.signal(number, former)
        os.close(self._ends[1])  # ends the thread, which closes the other end

    def hold(self, *, saves: bool, waits: bool) -> None:
        """Record the first signal instead of raising it.

        Args:
            saves: Whether there is something to save, so that the time limit does not apply.
            waits: Initial value of the attribute.
        """
        self._saves, self.waits, self._held = saves, waits, True

    def release(self) -> None:
        """Raise signals at once again, including a held one."""
        self._held = False
        if self.received is not None:
            _tell_launcher()
            raise Interrupted

    def finish(self) -> None:
        """Mark everything as saved; after a signal, the process ends within `LIMIT` seconds."""
        self._held, self._saves, self.waits = True, False, True
        self._since = time.monotonic()

    def end_children(self, seconds: float) -> None:
        """Wait for the ranks launched by this process, then kill them."""
        limit = time.monotonic() + seconds
        for child in self.children:
            try:
                child.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.children = []

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if is_first:
            self.received = signal.Signals(number)
            self._since = time.monotonic()
            if is_first_rank():
                _say(f"\nStopping ({self.received.name}). A second Ctrl-C ends at once.\n")
        if self._forced or (is_first and not self._held):
            self._forced = False
            _tell_launcher()
            raise Interrupted

    def _watch(self) -> None:
        assert self._ends is not None
        kind = int(signal.SIGTERM)
        read, first, sent = self._ends[0], 0.0, 0  # sent: signals sent by this thread
        while True:
            ready, _, _ = select.select([read], [], [], 0.2 if first else None)
            now = time.monotonic()
            if ready:
                numbers = os.read(read, 1024)
                if not numbers:
                    os.close(read)
                    return
                for number in (n for n in numbers if n in SIGNALS):
                    if sent:
                        sent -= 1
                    elif not first:
                        first, kind = now, number
                    elif now - first > _REPEATS.get(signal.Signals(number), _OTHER_REPEATS):
                        self._end_at_once("Ended at once by a second signal.")
            if not first:
                continue
            since = max(first, self._since)
            if self._held and not self.waits and not self._forced and now - since > PATIENCE:
                self._forced, self._held, sent = True, False, sent + 1
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, kind)
            if not self._saves and now - since > LIMIT:
                self._end_at_once(f"Ended {LIMIT:.0f} seconds after a signal.")

    def _end_at_once(self, text: str) -> None:
        _tell_launcher()
        for child in self.children:
            child.kill()
        for worker in multiprocessing.active_children():
            worker.kill()
        if is_first_rank():
            _say(text + "\n")
        os._exit(exit_code())


_active: StopSignals | None = None


def active() -> StopSignals | None:
    """The active `StopSignals` of this process, if any."""
    return _active


def is_first_rank() -> bool:
    """Whether this process is rank 0, which prints messages."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def is_launched_rank() -> bool:
    """Whether this process is another rank launched by Lightning."""
    others = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    return not is_first and not any(name in os.environ for name in others)


def exit_code() -> int:
    """Exit code of an interrupted command.

    Ranks launched by Lightning return 0, because Lightning would kill rank 0 if another rank ended
    with an error.
    """
    return 0 if is_launched_rank() else EXIT_CODE


def _tell_launcher() -> None:
    """Forward a signal of another rank to rank 0, which ends all of them."""
    if is_launched_rank():
        os.kill(os.getppid(), signal.SIGTERM)


def _say(text: str) -> None:
    # `print` is not reentrant, and a signal handler may interrupt another `print`.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _forget_in_child() -> None:
    """Restore default signal handling in a forked process, which has nothing to save."""
    global _active
    if _active is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _active._former:
        signal.signal(number, signal.SIG_DFL)
    _active = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
