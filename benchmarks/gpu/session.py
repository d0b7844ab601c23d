"""Sections in order of value, each a process with a limit, all within one budget of time.

A section that is killed keeps the rows that it has written; one that crashes is restarted and
continues after them. Sections that are complete in this state are skipped, so that the same command
resumes an earlier session.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.rows import ROOT, Rows

LOG = "log.txt"
LEAST_SECONDS = 10
"""A section with less time than this would only start."""
GRACE_SECONDS = 5
MOST_STARTS = 4


@dataclass(frozen=True)
class Section:
    """A command that writes rows.

    Attributes:
        name: Its name in the rows.
        command: What is run, in the root of the repository.
        seconds: Its limit, all starts together.
        program: A program that must be there.
        environment: Further variables.
        fine: Exit codes of a command that has done all it could; others are crashes.
    """

    name: str
    command: list[str]
    seconds: float
    program: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    fine: tuple[int, ...] = (0,)


class Stopped(SystemExit):
    """This process was asked to end."""


def stop_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception, so that it ends its own processes."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(128 + number)

    signal.signal(signal.SIGTERM, stop)


_running: set[subprocess.Popen[bytes]] = set()
_is_stopped = threading.Event()


def end_all() -> None:
    """End every process that `run_within` waits for, in any thread, and start no more."""
    _is_stopped.set()
    for process in list(_running):
        _end_group(process)


def is_stopped() -> bool:
    """Whether `end_all` was called."""
    return _is_stopped.is_set()


def run_within(
    command: list[str],
    seconds: float,
    log: Path,
    environment: dict[str, str] | None = None,
) -> int | None:
    """Exit code of a command, or ``None`` if it was killed because it took too long.

    It gets a process group of its own, which is ended with it: politely, then by force.
    """
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=env, start_new_session=True
        )
        _running.add(process)
        try:
            return process.wait(0 if _is_stopped.is_set() else seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)
            _running.discard(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def last_line(log: Path, shows: str = "", start: int = 0) -> str:
    """The last line of a log that says something, from a byte on; one with a text if there is."""
    text = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if shows in line] or lines
    return lines[-1][:200] if lines else ""


class Session:
    """One run of the driver.

    Args:
        rows: Where results go.
        seconds: Time for everything.
        clock: The time.
    """

    def __init__(
        self, rows: Rows, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rows, self.clock = rows, clock
        self.deadline = clock() + seconds
        self.log = rows.folder / LOG

    def run(self, sections: Iterable[Section]) -> None:
        """Run what is not finished, as far as the time goes."""
        for section in sections:
            done = self.rows.find("sections", section.name)
            if done is not None and done["outcome"] == "finished":
                print(f"{section.name}: finished before", flush=True)
                continue
            start = self.clock()
            outcome = self._outcome(section)
            seconds = round(self.clock() - start, 1)
            self.rows.add("sections", section.name, outcome=outcome, seconds=seconds)
            print(f"{section.name}: {outcome}, {seconds} s", flush=True)

    def _outcome(self, section: Section) -> str:
        if section.program is not None and shutil.which(section.program) is None:
            return f"left out: {section.program} is not installed"
        end = min(self.deadline, self.clock() + section.seconds)
        outcome = "left out: no time is left"
        for _ in range(MOST_STARTS):
            left = end - self.clock()
            if left < min(LEAST_SECONDS, section.seconds / 2):
                break
            size = self.log.stat().st_size if self.log.exists() else 0
            code = run_within(section.command, left, self.log, section.environment)
            if code is None:
                return f"killed after {left:.0f} s"
            if code in section.fine:
                return "finished"
            outcome = f"failed with {code}: {last_line(self.log, start=size)}"
        return outcome
