"""What tensors allocate on the CPU, counted instead of read from the resident memory.

The resident memory of a process depends on its allocator, on the kernel and on what libraries keep
for a processor; what tensors allocate is the same everywhere.
"""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_allocation(run: Callable[[], object], mapped: int = 0) -> int:
    """Most bytes that were allocated at any time while ``run()`` ran, beyond those before.

    Args:
        run: What to measure.
        mapped: Size of a file that it maps, which the profiler reports as if it were allocated.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if not mapped or abs(event.nbytes()) != mapped:
            now += event.nbytes()
            peak = max(peak, now)
    return peak
