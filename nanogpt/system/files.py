"""Files that are whole or absent, and reading those of strangers.

What is written is written beside, flushed to the disk, and then put in place in one step: whoever
pulls the plug finds the old or the new, never half of either.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError


def damaged_error(file: Path, reason: object) -> UserError:
    """The error of a file that cannot be what we wrote."""
    reason = " ".join(str(reason).split())[:200]
    return UserError(f"{file} is missing or damaged ({reason}): restore it, or train again")


# Writing.


def write_atomically(file: Path, raw: bytes) -> None:
    """Put raw in place of file, whole."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    try:
        with new.open("xb") as opened:  # never through a link
            opened.write(raw)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(new, file)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_to_disk(file.parent)


def dump_json(value: object) -> bytes:
    """One JSON document, indented for people."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or what a directory lists, is on the disk."""
    with suppress(PermissionError):  # some systems cannot open a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_directory(directory: Path, new: Path) -> None:
    """Put the directory new in place of directory, in one step where the system can."""
    if directory.exists():
        try:
            _exchange(directory, new)
        except OSError:
            _in_two_steps(directory, new)
    else:
        os.replace(new, directory)
    sync_to_disk(directory.parent)
    remove_if_present(new)
    remove_if_present(_set_aside(directory))


def remove_if_present(path: Path) -> None:
    """Remove a directory with all that is in it, or whatever else is there, if anything."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step: renameat2 of Linux with RENAME_EXCHANGE."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "no renameat2")
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange):
        raise OSError(ctypes.get_errno(), "renameat2")


def _in_two_steps(directory: Path, new: Path) -> None:
    """For systems that cannot swap: between the steps the old one has another name."""
    remove_if_present(_set_aside(directory))
    os.replace(directory, _set_aside(directory))
    os.replace(new, directory)


def _set_aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def resolve_interrupted_swap(directory: Path) -> Path:
    """Where a directory is: under its other name, if its replacement was cut short in two steps."""
    old = _set_aside(directory)
    return old if os.path.isdir(old) and not os.path.isdir(directory) else directory


# Reading.


def require_inside(root: Path, path: Path) -> Path:
    """The path, unless a link leads out of root. Raises UserError."""
    inside, outside = os.path.realpath(path), os.path.realpath(root)
    if not Path(inside).is_relative_to(outside):
        raise UserError(f"{path} is a link that leads out of {root}: put the file itself there")
    return path


def require_regular_file(root: Path, file: Path) -> Path:
    """The file within root, unless it is a pipe, a device or a directory. Raises UserError."""
    if os.path.exists(require_inside(root, file)) and not os.path.isfile(file):
        raise damaged_error(file, "not a regular file")
    return file


def read_limited(file: Path, limit: int) -> bytes:
    """The bytes of a file, which must not be more than limit. Raises UserError."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(limit + 1)
    except OSError as error:
        raise damaged_error(file, error.strerror) from None
    if len(raw) > limit:
        raise damaged_error(file, f"larger than {limit:,} bytes")
    return raw


def read_json(file: Path, limit: int = 1 << 20) -> dict[str, Any]:
    """One JSON object, read strictly: no key twice, no NaN. Raises UserError."""
    return parse_json(read_limited(file, limit), file)


def parse_json(raw: bytes, file: Path) -> dict[str, Any]:
    """The JSON object in raw; file is for the error. Raises UserError."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
        dump_json(value)  # half a surrogate pair could not be written again
    except (ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None
    if not isinstance(value, dict):
        raise damaged_error(file, "not a JSON object")
    return value


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def compute_sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises UserError where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise damaged_error(file, error.strerror) from None
