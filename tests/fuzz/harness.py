"""Feed mutated files to a reader, in child processes with bounds on time and memory.

A file may be read or refused with a `UserError`. Everything else is a fault: another exception, a
crash, a hang, too much memory, a program that is started, a connection, a file that is written or
removed.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.errors import UserError

Mutate = Callable[[random.Random, bytes], bytes]

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.putenv",
    "pty.spawn",
    "subprocess.Popen",
    "shutil.",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "ctypes.dlopen",
    "webbrowser.open",
)
_PROGRAMS = ("gs", "sh", "bash", "convert", "djpeg", "xv", "display", "curl", "wget", "touch")


@dataclass
class Outcome:
    """What became of the files.

    Attributes:
        read: Files that were read.
        refused: Files that were refused with a `UserError`.
        faults: Number of the mutation and what happened; the file is kept as ``fault_<number>``.
    """

    read: int = 0
    refused: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.read} read, {self.refused} refused, {len(self.faults)} faults"


def fuzz(
    read: Callable[[Path], Any],
    seeds: Sequence[bytes],
    mutate: Mutate,
    folder: Path,
    *,
    name: str,
    count: int,
    seed: int = 0,
    seconds: float = 20,
    memory: int = 2 * 2**30,
) -> Outcome:
    """Read ``count`` mutations of some files.

    Args:
        read: Reads a file; what it imports should be imported already.
        seeds: Intact files.
        mutate: Changes one of them; the same draws give the same file.
        folder: Empty folder for the files.
        name: File name that the reader sees.
        count: Number of mutations.
        seed: Decides the mutations.
        seconds: Longest time for one file.
        memory: Bytes of memory that a child may take beyond what it starts with.
    """
    outcome = Outcome()
    (folder / "canary").write_text("sings")
    bin_folder = _write_programs(folder)
    start = 0
    while start < count:
        results, end = _run_child(
            lambda number: read(
                _written(folder / name, mutate, seeds, random.Random(f"{seed}/{number}"))
            ),
            range(start, count),
            seconds,
            memory,
            bin_folder,
        )
        numbered = list(enumerate(results, start))
        start += len(results)
        if end is not None:  # the child died of the file it was reading
            numbered.append((start, end))
            start += 1
        for number, result in numbered:
            if result == "read":
                outcome.read += 1
            elif result == "refused":
                outcome.refused += 1
            else:
                outcome.faults.append((number, result))
                _written(
                    folder / f"fault_{number}_{name}",
                    mutate,
                    seeds,
                    random.Random(f"{seed}/{number}"),
                )
    if (folder / "started").exists():
        outcome.faults.append((-1, f"started {(folder / 'started').read_text()}"))
    if (folder / "canary").read_text() != "sings":
        outcome.faults.append((-1, "another file was changed"))
    return outcome


def _written(path: Path, mutate: Mutate, seeds: Sequence[bytes], rng: random.Random) -> Path:
    path.write_bytes(mutate(rng, rng.choice(seeds)))
    return path


def _write_programs(folder: Path) -> Path:
    """Programs that tell of being started, in a folder that stands first in the search path."""
    (folder / "bin").mkdir()
    for program in _PROGRAMS:
        path = folder / "bin" / program
        path.write_text(f"#!/bin/sh\necho {program} >> {folder}/started\nexit 1\n")
        path.chmod(0o755)
    return folder / "bin"


def _run_child(
    read: Callable[[int], Any], numbers: range, seconds: float, memory: int, bin_folder: Path
) -> tuple[list[str], str | None]:
    """Read in a forked process until it is through or dies.

    Returns:
        One word or sentence for each file, and how the process died, if it did.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _confine(seconds, memory, bin_folder)
            with os.fdopen(writing, "w") as pipe:
                gc.freeze()  # so that the next is fast
                for number in numbers:
                    gc.collect()  # tracebacks of earlier files can hold their pixels
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    print(_verdict(read, number), file=pipe, flush=True)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        results = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    if len(results) == len(numbers):
        return results, None
    if os.WIFSIGNALED(status):
        died_of = signal.Signals(os.WTERMSIG(status)).name
        hung = f"took more than {seconds} seconds"
        return results, hung if died_of == "SIGALRM" else f"died of {died_of}"
    return results, "ended the process"


def _confine(seconds: float, memory: int, bin_folder: Path) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _verdict(read: Callable[[int], Any], number: int) -> str:
    _watch()
    try:
        read(number)
    except UserError as error:
        if "enough memory" in str(error):
            return f"took too much memory: {' '.join(str(error).split())}"
        return _seen or "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return _seen or "read"


_seen = ""
_is_watching = False


def _watch() -> None:
    """Note the first forbidden event, even if the reader catches the error."""
    global _is_watching, _seen
    _seen = ""
    if not _is_watching:
        _is_watching = True
        sys.addaudithook(_on_event)


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    global _seen
    if event.startswith(_FORBIDDEN):
        _seen = f"caused {event} {args!r}"[:200].replace("\n", " ")
