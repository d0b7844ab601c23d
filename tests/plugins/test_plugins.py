"""What the tests themselves rely on: workers, ports, and processes that are not left running."""

import os
import socket
import subprocess
import sys

import pytest

from tests.plugins import workers
from tests.plugins.leftovers import MARK, leftovers
from tests.plugins.ports import BLOCK, reserved


@pytest.mark.parametrize(
    ("cores", "gib", "count"), [(1, 64, 1), (2, 24, 2), (16, 15, 3), (8, 2, 1)]
)
def test_workers_are_as_many_as_cores_and_memory_allow(monkeypatch, cores, gib, count):
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers, "memory_gib", lambda: gib)
    assert workers.pytest_xdist_auto_num_workers() == count


def test_the_machine_is_measured():
    assert 1 <= workers.cores() <= os.cpu_count()
    assert workers.memory_gib() >= 1


def test_two_sessions_have_no_port_in_common():
    with reserved() as one, reserved() as other:
        assert next(one) // BLOCK != next(other) // BLOCK


def test_a_port_in_use_is_not_given_away():
    with reserved() as numbers, socket.socket() as server:
        taken = next(numbers)
        for _ in range(BLOCK - 1):
            next(numbers)
        server.bind(("", taken))
        assert next(numbers) == taken + 1


def test_trainers_of_different_tests_have_different_ports(ports):
    assert next(ports) != int(os.environ["MASTER_PORT"])


def test_a_process_whose_parent_has_ended_is_found():
    start = "import subprocess; subprocess.Popen(['sleep', '61.5'], start_new_session=True)"
    environment = os.environ | {MARK: "this test"}
    subprocess.run([sys.executable, "-c", start], env=environment, check=True)
    (process,) = (process for process, name in leftovers("this test") if name == "sleep 61.5")
    process.kill()
    process.wait(10)
    assert "sleep 61.5" not in [name for _, name in leftovers("this test")]
