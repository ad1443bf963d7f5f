"""How many cores this process may use."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much of the processor a container may use."""


def count_cores() -> int:
    """How many cores this process may use at a time: its affinity, and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(count or 1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return count or 1
