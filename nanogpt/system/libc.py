"""Functions of the C library that Python has no module for."""

import ctypes
import os
from typing import Any


def find_c_function(name: str) -> Any:
    """The function of this name in the C library of the process; None if there is none.

    Windows never has one: its C runtime cannot be looked up without a file name.
    """
    if os.name != "posix":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
