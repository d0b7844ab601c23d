"""The driver of the GPU benchmarks: budget, kills, crashes, what is finished."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.session import LOG, Section, Session, last_line, run_within

WRITE = "from benchmarks.gpu.rows import Rows; from pathlib import Path; rows = Rows(Path(r'{}'));"


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path / "out")
    rows.describe({"state": "here", "device": "none"})
    return rows


def section(rows, name, code, seconds=60.0, **arguments):
    program = WRITE.format(rows.folder) + code
    return Section(name, [sys.executable, "-c", program], seconds, **arguments)


def outcome(rows, name):
    return rows.find("sections", name)["outcome"]


def test_sections_run_in_order_and_once(rows):
    sections = [section(rows, name, f"rows.add('s', '{name}', value=1)") for name in ("a", "b")]
    Session(rows, 100).run(sections)
    assert [r["key"] for r in rows.read() if r["section"] == "s"] == ["a", "b"]
    assert outcome(rows, "a") == outcome(rows, "b") == "finished"
    Session(Rows(rows.folder), 100).run(sections)
    assert [r["key"] for r in rows.read() if r["section"] == "s"] == ["a", "b"]


def test_a_killed_section_keeps_its_rows_and_is_resumed(rows):
    code = """
import time
for key in ("a", "b"):
    if rows.find("s", key) is None:
        rows.add("s", key, value=1)
        if key == "a":
            time.sleep(60)
"""
    slow = section(rows, "slow", code, seconds=6)
    after = section(rows, "after", "rows.add('s', 'after', value=1)")
    start = time.monotonic()
    Session(rows, 100).run([slow, after])
    assert time.monotonic() - start < 50
    assert outcome(rows, "slow").startswith("killed after")
    assert rows.find("s", "a") is not None
    assert rows.find("s", "b") is None
    assert outcome(rows, "after") == "finished"
    Session(rows, 100).run([slow])
    assert outcome(rows, "slow") == "finished"
    assert rows.find("s", "b") is not None


def test_the_budget_ends_everything(rows):
    """Time is left for the first section only, which would take longer."""
    now = [0.0]
    session = Session(rows, 12, clock=lambda: now[0])
    now[0] = 3.0
    session.run([section(rows, "late", "rows.add('s', 'late', value=1)")])
    assert outcome(rows, "late") == "left out: no time is left"
    assert rows.find("s", "late") is None


def test_a_crashed_section_is_restarted_after_the_failed_row(rows):
    code = """
import os
for key in "abc":
    if rows.find("s", key) is not None:
        continue
    gives_up = rows.attempts("s", key) >= 2
    rows.start("s", key)
    if key == "b" and not gives_up:
        os.abort()
    rows.add("s", key, gave_up=gives_up)
"""
    Session(rows, 100).run([section(rows, "crashes", code)])
    assert outcome(rows, "crashes") == "finished"
    assert [rows.find("s", key)["gave_up"] for key in "abc"] == [False, True, False]


def test_a_section_that_always_fails_reports_its_last_output(rows):
    Session(rows, 100).run([section(rows, "bad", "raise ValueError('so it is')")])
    assert outcome(rows, "bad") == "failed with 1: ValueError: so it is"


def test_what_is_not_installed_is_left_out_with_the_reason(rows):
    Session(rows, 100).run([section(rows, "tool", "", program="no-such-tool")])
    assert outcome(rows, "tool") == "left out: no-such-tool is not installed"


def test_processes_of_a_killed_command_end_with_it(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(r'{pid_file}', 'w').write(str(child.pid))
time.sleep(300)
"""
    assert run_within([sys.executable, "-c", code], 4, tmp_path / LOG) is None
    pid = int(pid_file.read_text())
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_last_line_that_says_something(tmp_path):
    log = tmp_path / LOG
    log.write_text("first\nlast words \n\n")
    assert last_line(log) == "last words"
    assert last_line(log, shows="first") == "first"
    assert last_line(log, shows="absent") == "last words"
    assert last_line(log, start=log.stat().st_size) == ""
    assert last_line(tmp_path / "absent") == ""
