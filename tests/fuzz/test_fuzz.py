"""Mutated annotation files, images and label maps are read or refused in one sentence."""

import os
import signal
import time

import numpy as np
import pytest

from src.errors import UserError
from tests.fuzz.harness import fuzz
from tests.fuzz.readers import targets


@pytest.mark.parametrize("kind", list(targets()))
def test_mutated_files_are_read_or_refused(tmp_path, kind):
    target = targets()[kind]
    outcome = fuzz(
        target.read, target.seeds, target.mutate, tmp_path, name=target.name, count=100, seed=1
    )
    assert outcome.faults == []
    assert outcome.read + outcome.refused == 100
    assert outcome.refused > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(targets()))
def test_many_mutated_files_are_read_or_refused(tmp_path, kind):
    target = targets()[kind]
    outcome = fuzz(
        target.read, target.seeds, target.mutate, tmp_path, name=target.name, count=2000, seed=2
    )
    assert outcome.faults == []


@pytest.mark.parametrize("kind", list(targets()))
def test_intact_files_are_read(tmp_path, kind):
    target = targets()[kind]
    for number, content in enumerate(target.seeds):
        path = tmp_path / f"{number}_{target.name}"
        path.write_bytes(content)
        target.read(path)


def _bad_readers():
    def crash(path):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(path):
        time.sleep(60)

    def take_memory(path):
        return np.ones(2**29)

    def start_a_program(path):
        os.system("gs --version")

    def start_and_hide_it(path):
        try:
            os.system("true")
        finally:
            raise UserError("refused")

    def traceback(path):
        raise KeyError("x")

    def end(path):
        os._exit(0)

    return {
        crash: "SIGSEGV",
        hang: "took more than",
        take_memory: "MemoryError",
        start_a_program: "os.system",
        start_and_hide_it: "os.system",
        traceback: "KeyError",
        end: "ended",
    }


@pytest.mark.parametrize(
    ("read", "fault"), _bad_readers().items(), ids=lambda v: getattr(v, "__name__", str(v))
)
def test_the_harness_notices(tmp_path, read, fault):
    outcome = fuzz(
        read, [b"x"], lambda _, c: c, tmp_path, name="f", count=2, seconds=0.5, memory=2**30
    )
    assert [number for number, _ in outcome.faults if number >= 0] == [0, 1]
    assert all(fault in what for number, what in outcome.faults if number >= 0)
    assert (tmp_path / "fault_0_f").read_bytes() == b"x"
