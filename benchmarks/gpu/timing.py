"""Times of calls on a GPU by its own events, and on a CPU, where the driver is only tried out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Calls = dict[str, Callable[[], object]]
LEAST_ROUNDS, MOST_ROUNDS = 20, 200
SLEEP_CYCLES = 2_000_000  # about a millisecond at 2 GHz; a call has to be issued within it


def milliseconds(
    calls: Calls, seconds: float, device: str, *, hides_host: bool = False
) -> dict[str, float]:
    """Median time of each call, the calls taking turns.

    Args:
        calls: Name and call.
        seconds: Measured time, all calls together; at least 20 rounds are measured on a GPU.
        device: ``cuda`` or ``cpu``.
        hides_host: Let the device sleep before each call until the host has issued it whole, so
            that the time is that of the kernels; otherwise a call that the host is slow to issue
            takes longer.
    """
    if device == "cpu":
        return _on_cpu(calls, seconds)
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    spent, rounds = 0.0, 0
    while rounds < LEAST_ROUNDS or (spent < seconds * 1e3 and rounds < MOST_ROUNDS):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if hides_host:
                torch.cuda._sleep(SLEEP_CYCLES)
            start.record()
            call()
            end.record()
            events[name].append((start, end))
        torch.cuda.synchronize()
        spent += sum(pairs[-1][0].elapsed_time(pairs[-1][1]) for pairs in events.values())
        rounds += 1
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs)
        for name, pairs in events.items()
    }


def _on_cpu(calls: Calls, seconds: float) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while not any(times.values()) or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy of 1 GiB (on a CPU 16 MiB) reads and writes."""
    source = torch.empty(2**28 if device == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    time = milliseconds({"copy": lambda: target.copy_(source)}, 0.2, device)["copy"]
    return 2 * source.nbytes / (time / 1e3)
