"""Measures the memory of tensors on a CPU."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function


def measure_tensors(*actions: Callable[[], object]) -> list[int]:
    """Call the functions in this order; return the peak bytes of tensors during each of them.

    Only memory that torch allocates after the start of the first function counts. Unlike the memory
    that the operating system reports, it does not depend on other programs.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for number, action in enumerate(actions):
            with record_function(f"action {number}"):
                action()
    results: Any = profiler.profiler
    events = results.kineto_results.events()
    starts = sorted(event.start_ns() for event in events if event.name().startswith("action "))
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    used, peaks = 0, [0] * len(actions)
    for time, change in changes:
        used += change
        now = sum(start <= time for start in starts) - 1
        peaks[now] = max(peaks[now], used)
    return peaks
