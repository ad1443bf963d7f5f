"""Finds functions of the C library that no Python module offers."""

import ctypes
import os
from typing import Any


def find_c_function(name: str) -> Any:
    """Return the function with this name in the C library of the process; None if it is missing.

    On Windows, the result is always None: the C runtime cannot be found without a file name.
    """
    if os.name != "posix":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
