"""A test session fails if processes that its tests have started outlive it."""

import os
import time
from collections.abc import Iterator

import psutil
import pytest

MARK = "INTERNIMAGE_TEST_SESSION"
GRACE = 10  # seconds in which processes may end that have been told to
# End with the test process, because they notice that it is gone.
END_BY_THEMSELVES = ("multiprocessing.resource_tracker", "torch._inductor.compile_worker")


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):  # workers inherit it, and pass it on to all that tests start
        os.environ[MARK] = f"{os.getpid()}-{time.time()}"


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name and end what is still running, workers aside, and let the session fail."""
    if is_worker(session.config):
        return
    deadline = time.monotonic() + GRACE
    while (found := list(leftovers(os.environ[MARK]))) and time.monotonic() < deadline:
        time.sleep(0.2)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if found:
        reporter.ensure_newline()
    for process, command in found:
        reporter.write_line(f"ERROR still running after the tests: {process.pid} {command}")
        process.kill()
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def leftovers(mark: str) -> Iterator[tuple[psutil.Process, str]]:
    """Descendants of this process, and those whose parents have ended; with their commands."""
    own = psutil.Process()
    descendants = {process.pid for process in own.children(recursive=True)}
    psutil.process_iter.cache_clear()  # it skips a process that has the number of an earlier one
    for process in psutil.process_iter():
        try:
            is_marked = process.environ().get(MARK) == mark and process.pid != own.pid
            command = " ".join(process.cmdline())
            is_alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        is_expected = any(name in command for name in END_BY_THEMSELVES)
        if (is_marked or process.pid in descendants) and is_alive and not is_expected:
            yield process, command
