"""The memory of the machine, a check that a task fits into it, and two formats for numbers."""

import os
import sys
from pathlib import Path

from ..errors import UserError

LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""On Linux, these files contain the number of bytes of memory that a container may use. The
first file is for version 2 of control groups, and "max" in this file means no limit. The second
file is for version 1."""
UNKNOWN = 1 << 62
PREFIXES = {
    **{1e30: "Q", 1e27: "R", 1e24: "Y", 1e21: "Z", 1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G"},
    **{1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"},
}
"""The SI prefixes, by their values."""


def get_memory() -> int:
    """Return how many bytes of memory this process may use; 2**62 if this is unknown."""
    sizes = [_get_physical_memory()]
    for file in LIMITS:
        try:
            sizes.append(int(file.read_text("ascii")))
        except (OSError, ValueError):  # no such file, or no limit
            continue
    return min(sizes)


def _get_physical_memory() -> int:
    """Return the bytes of memory of the machine; 2**62 if it is unknown."""
    if sys.platform == "win32":
        import ctypes

        kilobytes = ctypes.c_ulonglong(0)
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value * 1024 or UNKNOWN
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return UNKNOWN


def require_memory(needed: int, what: str, advice: str) -> None:
    """Raise UserError if `what` needs more bytes of memory than this process may use.

    A system such as Linux grants more memory than it has, and kills a process that uses too much
    memory. So a task that needs too much memory must be refused before it starts.
    """
    if needed > (memory := get_memory()):
        raise UserError(
            f"{what} needs at least {format_quantity(needed, 'B')} of memory, but only "
            f"{format_quantity(memory, 'B')} are available: {advice}"
        )


def format_quantity(value: float, unit: str) -> str:
    """Format a value with up to three significant digits and an SI prefix, such as 1.23 ms.

    A value that is too large for every prefix has an exponent, such as 1.23e+45 s.
    """
    value = float(f"{value:.3g}")  # round first, so that 999,600 becomes 1 M
    if value >= 1e33:
        return f"{value:.3g} {unit}".strip()
    size = next((size for size in PREFIXES if value >= size), 1.0)
    return f"{value / size:.3g} {PREFIXES[size]}{unit}".strip()


def format_count(value: float) -> str:
    """Format a whole number exactly, such as 10,672,512; use an SI prefix from 10¹⁵ on."""
    return f"{value:,.0f}" if value < 1e15 else format_quantity(value, "")
