"""Helpers for tests that depend on the operating system, or on the privileges of the user."""

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals or files")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a feature of Linux")


def _can_link() -> bool:
    """Whether this user may create symbolic links; Windows restricts this."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            Path(directory, "link").symlink_to("target")
        except OSError:
            return False
    return True


needs_links = pytest.mark.skipif(not _can_link(), reason="this user may not create links")


def peak_memory() -> int:
    """Return the peak memory of this process so far, in bytes. On Windows, skip the test."""
    if sys.platform == "linux":  # getrusage() may return the peak of the parent process
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@contextmanager
def without_privileges() -> Iterator[None]:
    """Within this context, file permissions apply to root as to all other users."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root can give up its access to all files only on Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0
