"""The number of CPU cores that this process may use."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""On Linux, this file contains the CPU time that a container may use per period, and the length of
the period, both in microseconds. "max" means no limit."""


def count_cores() -> int:
    """Count the cores that this process may use; CPU affinity or a container can limit them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = QUOTA.read_text("ascii").split()
        return max(1, min(count or 1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or no limit
        return count or 1
