"""Errors that several modules for other programs raise."""

from importlib.util import find_spec
from pathlib import Path

from ..errors import Stopped, UserError


def require_libraries(purpose: str, *names: str) -> None:
    """Raise UserError if one of these libraries is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(
            f"{purpose} needs the library {missing[0]}: install it with `pip install "
            f"{' '.join(missing)}`"
        )


def unwritable_error(directory: Path, error: OSError) -> Stopped:
    """Return the error for a new directory that cannot be written."""
    return Stopped(
        f"cannot write {directory} ({error.strerror or error}): name another directory with "
        f"--out, or free disk space"
    )
