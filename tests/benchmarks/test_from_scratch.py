"""The comparison from scratch trains both networks for whole schedules."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "from_scratch.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "parameters"), [("internimage_nano", 1.9e6), ("resnet18", 11.2e6)]
)
def test_a_network_trains_its_whole_schedule(network, parameters, images, tmp_path):
    command = [sys.executable, str(SCRIPT), "--root", str(images), "--out", str(tmp_path)]
    command += ["--network", network, "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["network"], last["epochs"]) == (network, 2)
    assert last["parameters"] == pytest.approx(parameters, rel=0.05)
    assert [row["epoch"] for row in last["history"]] == [1, 2]
    assert last["cpu_minutes"] >= 0
    assert 0 <= last["top1"] <= last["best"] <= 100
