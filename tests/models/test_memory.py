"""The planner's figures against the peak of a real step on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from src.models import InternImage
from src.models.memory import extrapolate, measure_step

ROOT = Path(__file__).resolve().parents[2]
TINY = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


def tiny() -> InternImage:
    return InternImage(num_classes=10, **TINY)


def test_a_larger_batch_follows_from_two_small_ones() -> None:
    two, three, six = (measure_step(tiny, (64, 64), batch) for batch in (2, 3, 6))
    assert two.gradients == six.gradients == 4 * sum(p.numel() for p in tiny().parameters())
    for share in (0.0, 0.5, 1.0):
        assert extrapolate(two, three, 6).peak(share) == pytest.approx(six.peak(share), rel=0.02)
    assert extrapolate(two, three, 6).operations == pytest.approx(six.operations, rel=0.01)


def test_split_gradients_and_checkpoints_save_memory() -> None:
    plain = measure_step(tiny, (96, 96), 2, checkpointing=False)
    checkpointed = measure_step(tiny, (96, 96), 2, checkpointing=True)
    assert checkpointed.peak() < plain.peak()
    assert checkpointed.operations > plain.operations
    assert plain.peak(0.0) <= plain.peak(0.5) <= plain.peak(1.0) <= plain.peak(accumulates=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_mixed_precision_needs_less(checkpointing: bool) -> None:
    full, mixed, half = (
        measure_step(tiny, (96, 96), 4, precision=name, checkpointing=checkpointing).peak(0.0)
        for name in ("32-true", "bf16-mixed", "bf16-true")
    )
    assert half < mixed < full


MEASURE = """
import resource, sys, torch
from src.models import InternImage
from tests.models.test_memory import WIDE, SIZE, BATCH
torch.set_num_threads(1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
network = InternImage(num_classes=10, **WIDE, grad_checkpointing=sys.argv[1] == "True").train()
image = torch.zeros(1, 3, 32, 32)
network(torch.cat([image, image])).sum().backward()  # loads what is loaded once
network.zero_grad(set_to_none=True)
image = torch.zeros(BATCH, 3, SIZE, SIZE)
before = resident()
network(image).sum().backward()
# Not ru_maxrss, which starts at the size of the process that started this one.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""
WIDE = {"channels": 64, "depths": (2, 2, 4, 2), "groups": (4, 8, 16, 32)}
SIZE, BATCH = 224, 8


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_measured_peak_of_a_real_step(checkpointing: bool) -> None:
    expected = measure_step(
        lambda: InternImage(num_classes=10, **WIDE),
        (SIZE, SIZE),
        BATCH,
        checkpointing=checkpointing,
    ).peak()
    command = [sys.executable, "-c", MEASURE, str(checkpointing)]
    # Large blocks go back to the system at once, so that the peak is that of what lives.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0, found.stderr
    print(f"planned {expected / 2**20:.0f} MiB, measured {int(found.stdout) / 2**20:.0f} MiB")
    assert int(found.stdout) == pytest.approx(expected, rel=0.1)
