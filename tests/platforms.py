"""Marks for tests that need a feature that some operating systems lack."""

import os
import sys
import tempfile
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
    """Return the peak memory of this process so far, in bytes. Skip the test on Windows."""
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
