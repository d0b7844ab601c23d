"""Stop a command on SIGINT (Ctrl-C), SIGTERM or SIGHUP: in time, and at a point that loses nothing.

The first signal ends a command at once by raising `Interrupted`, unless `hold` was called: then it
is only remembered in ``received``, and whoever holds it (the callback ``GracefulStop``) ends the
run at the next point at which a checkpoint can be written. A further signal ends the process
whatever it does.

Python runs signal handlers between two instructions of the main thread, so a process that waits
inside a collective operation or in a long C++ call would not notice them. A thread therefore
listens as well (``signal.set_wakeup_fd``) and enforces the limits of time.
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
"""Exit code of an interrupted command, as of a shell after Ctrl-C."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
PATIENCE = 5.0
"""Seconds after which a held signal is raised where that loses nothing."""
LIMIT = 10.0
"""Seconds after which a process ends that has nothing to save and still runs."""
_REPEATS = {signal.SIGINT: 0.3}
_OTHER_REPEATS = 5.0
"""Seconds within which further signals are copies of the first: ``timeout`` sends two, torchrun and
Lightning's launcher pass on what the whole process group has already got."""


class Interrupted(BaseException):
    """A signal has asked this command to stop.

    Args:
        text: Sentence for the user.
        agreed: Whether all ranks raise it at the same step, so that they can still work together.
    """

    def __init__(self, text: str = "", *, agreed: bool = False) -> None:
        super().__init__(text)
        self.agreed = agreed


class StopSignals:
    """Context in which the stop signals are handled as the module describes.

    Signals that are ignored when it starts (``nohup``, background jobs of a script) stay ignored.
    Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: The first stop signal, if there was one.
        waits: Whether a held signal stays held for good; otherwise it is raised after `PATIENCE`.
        children: Processes of further ranks that this process has started.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.children: list[subprocess.Popen[Any]] = []
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
        os.close(self._ends[1])  # the thread ends with it and closes the other end

    def hold(self, *, saves: bool, waits: bool) -> None:
        """Only remember the first signal from now on.

        Args:
            saves: Whether there is something to save, so that the process may take its time.
            waits: First value of the attribute.
        """
        self._saves, self.waits, self._held = saves, waits, True

    def release(self) -> None:
        """Raise a signal at once from now on, also one that is held."""
        self._held = False
        if self.received is not None:
            _tell_launcher()
            raise Interrupted

    def finish(self) -> None:
        """Say that everything is saved: if a signal has come, the process ends within `LIMIT`."""
        self._held, self._saves, self.waits = True, False, True
        self._since = time.monotonic()

    def end_children(self, seconds: float) -> None:
        """Wait for the further ranks that this process has started, then kill them."""
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
        read, first, own = self._ends[0], 0.0, 0  # own: signals that this thread sends
        while True:
            ready, _, _ = select.select([read], [], [], 0.2 if first else None)
            now = time.monotonic()
            if ready:
                numbers = os.read(read, 1024)
                if not numbers:
                    os.close(read)
                    return
                for number in (n for n in numbers if n in SIGNALS):
                    if own:
                        own -= 1
                    elif not first:
                        first, kind = now, number
                    elif now - first > _REPEATS.get(signal.Signals(number), _OTHER_REPEATS):
                        self._end_at_once("Ended at once by a second signal.")
            if not first:
                continue
            since = max(first, self._since)
            if self._held and not self.waits and not self._forced and now - since > PATIENCE:
                self._forced, self._held, own = True, False, own + 1
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
    """The handling of signals that is in force in this process, if any."""
    return _active


def is_first_rank() -> bool:
    """Whether this is the process that speaks for all."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def is_launched_rank() -> bool:
    """Whether Lightning has started this process for a further device."""
    others = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    return not is_first and not any(name in os.environ for name in others)


def exit_code() -> int:
    """Exit code of an interrupted command.

    A rank that Lightning has started leaves it to the first one, which Lightning would kill if
    another ended with an error.
    """
    return 0 if is_launched_rank() else EXIT_CODE


def _tell_launcher() -> None:
    """Pass a signal that came to a further rank on to the first one, which ends them all."""
    if is_launched_rank():
        os.kill(os.getppid(), signal.SIGTERM)


def _say(text: str) -> None:
    # `print` may be interrupted in the middle of another `print`, which it refuses.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _forget_in_child() -> None:
    """A forked process has nothing to save: signals end it as they end any process."""
    global _active
    if _active is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _active._former:
        signal.signal(number, signal.SIG_DFL)
    _active = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
