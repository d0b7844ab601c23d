"""The benchmark of exported files: its processes end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import os, sys
from benchmarks.export_cpu import exit_on_sigterm, in_process
exit_on_sigterm()
in_process(None, os.system, f"echo $$ > {sys.argv[1]}; exec sleep 600")
"""


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_benchmark_ends_what_it_started(number: int, status: int, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    root = Path(__file__).parents[2]
    started = subprocess.Popen([sys.executable, "-c", CODE, str(path)], cwd=root)
    try:
        end = time.monotonic() + 120
        while not (path.exists() and path.read_text().strip()) and time.monotonic() < end:
            time.sleep(0.1)
        child = int(path.read_text())
        assert is_running(child)
        os.kill(started.pid, number)
        assert started.wait(60) in (status, -number)
        while is_running(child) and time.monotonic() < end:
            time.sleep(0.1)
        assert not is_running(child)
    finally:
        started.kill()
