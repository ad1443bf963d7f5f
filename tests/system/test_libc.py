"""find_c_function() finds a function of the C library if the system has it."""

import ctypes
from pathlib import Path

import pytest

from nanogpt.system import files, libc
from nanogpt.system.libc import find_c_function
from tests.platforms import posix_only


@posix_only
def test_a_function_of_the_c_library_is_found() -> None:
    assert find_c_function("abs")(-3) == 3
    assert find_c_function("no_such_function") is None


def test_windows_has_no_c_library_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, CDLL(None) raises a TypeError."""

    def no_name(name: str | None, **_: object) -> None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    class Windows:
        name = "nt"

    monkeypatch.setattr(ctypes, "CDLL", no_name)
    monkeypatch.setattr(libc, "os", Windows)
    assert find_c_function("abs") is None
    with pytest.raises(OSError, match="no renameat2"):
        files._swap(Path("one"), Path("other"))
