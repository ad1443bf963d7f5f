"""Functions of the C library that Python has no module for."""

import ctypes
import os
from typing import Any


def find_c_function(name: str) -> Any:
    """The function of this name in the C library of the process; None if there is none.

    On Windows it is always None: the C runtime cannot be found without a file name.
    """
    if os.name != "posix":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
