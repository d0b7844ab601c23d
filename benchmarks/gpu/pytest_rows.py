"""Pytest plugin of the driver: a row for each test, tests that have one left out, and a sample.

`GPU_ROWS` names the folder, `GPU_ROWS_SECTION` the section and `GPU_ROWS_SAMPLE` the number of
tests, spread evenly over all; 0 takes all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu.rows import Rows


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RowPerTest(config), "row-per-test")


def take_sample(items: list, count: int) -> list:
    """`count` items spread evenly, or all."""
    if not 0 < count < len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


class RowPerTest:
    """Writes rows in the process that collects results, and leaves out tests in all of them."""

    def __init__(self, config: pytest.Config) -> None:
        self.section = os.environ["GPU_ROWS_SECTION"]
        self.sample = int(os.environ.get("GPU_ROWS_SAMPLE", 0))
        self.rows = Rows(Path(os.environ["GPU_ROWS"]))
        self.is_worker = hasattr(config, "workerinput")
        if self.is_worker:  # all processes must collect the same tests
            self.done = set(config.workerinput["rows_done"])
        else:
            state = self.rows.state
            self.done = {r["key"] for r in self.rows.read() if "test" in r and r["state"] == state}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        """Tell a worker of pytest-xdist what is done."""
        node.workerinput["rows_done"] = sorted(self.done)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        """Take the sample, without what is done."""
        kept = [i for i in take_sample(items, self.sample) if i.nodeid not in self.done]
        chosen = set(map(id, kept))
        config.hook.pytest_deselected(items=[i for i in items if id(i) not in chosen])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the row of a test."""
        if self.is_worker or not (report.when == "call" or not report.passed):
            return
        detail = {}
        if report.failed:
            lines = report.longreprtext.splitlines()
            detail["why"] = next((x for x in reversed(lines) if x.startswith("E ")), "")[:200]
        test = "skipped" if report.skipped else report.outcome
        self.rows.add(
            self.section, report.nodeid, test=test, seconds=round(report.duration, 2), **detail
        )
