"""Ports for the runs of several ranks: no test is given the port of another one.

To ask the system for a free port and to bind it later is a race, which Lightning loses now and then
when runs start at the same time. Here each test process locks a block of ports below those that
the system hands out, and every test takes the next free one of it.
"""

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from filelock import FileLock, Timeout

from tests.plugins.workers import LOCKS

FIRST, LAST, BLOCK = 20_000, 32_000, 100
# Lightning leaves them in the environment; where LOCAL_RANK is set, it takes a process for one that
# others have started, and waits for ranks that are never started.
LEFT_BY_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR")


@contextmanager
def reserved() -> Iterator[Iterator[int]]:
    """Free ports, reserved within the block."""
    LOCKS.mkdir(exist_ok=True)
    for first in range(FIRST, LAST, BLOCK):
        try:
            with FileLock(LOCKS / f"ports_{first}.lock", blocking=False):
                yield filter(is_free, itertools.cycle(range(first, first + BLOCK)))
        except Timeout:
            continue
        return
    raise RuntimeError(f"All ports from {FIRST} to {LAST} are taken by other test runs.")


@pytest.fixture(scope="session")
def ports() -> Iterator[Iterator[int]]:
    """Free ports: ``next(ports)``."""
    with reserved() as numbers:
        yield numbers


def is_free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


@pytest.fixture(autouse=True)
def _own_meeting_place(ports: Iterator[int]) -> Iterator[None]:
    """Where the ranks of a trainer meet that a test starts, in this process or in others."""
    forget_ranks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "MASTER_PORT", str(next(ports)))
        yield
    forget_ranks()


def forget_ranks() -> None:
    for name in LEFT_BY_LIGHTNING:
        os.environ.pop(name, None)
