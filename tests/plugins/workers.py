"""How many tests run at once, with how many threads, and which ones have the memory to themselves.

`pytest -n auto` starts a worker for each core, fewer if the machine has little memory. The workers
share the cores: each has one thread, or two where there are cores to spare.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import pytest
import torch
from filelock import FileLock

GIB_PER_WORKER = 4
MAX_THREADS = 2  # the networks of the tests are too small for more
LOCKS = Path(gettempdir()) / f"internimage-tests-{os.getuid()}"


def cores() -> int:
    """Cores that this process may use: those of its affinity mask and of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    return max(1, min(count or 1, int(quota) // int(period) if quota != "max" else count or 1))


def memory_gib() -> int:
    """Memory of the machine, or of the cgroup if that is less."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    quota = limit.read_text().strip() if limit.exists() else "max"
    return (min(size, int(quota)) if quota != "max" else size) // 2**30


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return max(1, min(cores(), memory_gib() // GIB_PER_WORKER))


def pytest_configure(config: pytest.Config) -> None:
    workers = config.getoption("numprocesses", None) or 1
    threads = max(1, min(MAX_THREADS, cores() // workers))
    # Workers and the processes that tests start inherit the number.
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", str(threads))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run tests with the mark ``heavy`` one at a time, in whichever workers they are."""
    if item.get_closest_marker("heavy") is None:
        return (yield)
    LOCKS.mkdir(exist_ok=True)
    with FileLock(LOCKS / "heavy.lock"):
        return (yield)
