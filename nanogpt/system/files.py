"""Writes files and directories atomically, and reads files that may be untrusted.

Data is written to a new file and synced to the disk. Then the new file replaces the old file in one
step. So after a crash or a power failure, a file has either all of its old contents or all of its
new contents.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, access_error, is_denied
from .libc import find_c_function

IS_WINDOWS = os.name == "nt"
REPLACE_TIMEOUT = 5.0
"""Maximum seconds to wait, on Windows, until another process closes a file."""


RESTORE = ": restore it, or train again"


def damaged_error(file: Path, reason: object) -> UserError:
    """Return the error for a file that is missing or has contents that nanogpt never writes."""
    reason = " ".join(str(reason).split())[:200]
    return UserError(f"{file} is missing or damaged ({reason}){RESTORE}")


@contextmanager
def advise(advice: str) -> Iterator[None]:
    """Within this context, the errors for damaged files have this advice, without the colon."""
    try:
        yield
    except UserError as error:
        problem, restore, _ = str(error).partition(RESTORE)
        if not restore:
            raise
        raise UserError(f"{problem}: {advice}") from None


def unreadable_error(file: Path, error: OSError) -> UserError:
    """Return the error for a file of nanogpt that cannot be read."""
    if is_denied(error):
        return access_error(file, error)
    return damaged_error(file, error.strerror or error)


# Writing.


def write_atomically(file: Path, raw: bytes) -> None:
    """Write `raw` to a file, which keeps its old contents until the new contents are complete."""
    # The name is shortened: file systems allow 255 bytes, and a character has at most 4 bytes.
    new = file.with_name(f".{file.name[:60]}.new")
    new.unlink(missing_ok=True)
    try:
        with new.open("xb") as opened:  # mode "x" does not follow a link
            opened.write(raw)
            opened.flush()
            _sync_descriptor(opened.fileno())
        replace_path(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_to_disk(file.parent)


def write_output(file: Path, raw: bytes) -> None:
    """Write `raw` to a file that the user named. Only a regular file is replaced.

    A link is followed; a pipe or a device receives the bytes. Raises OSError.
    """
    if file.is_symlink():
        file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():
        with file.open("wb") as opened:  # raises IsADirectoryError for a directory
            opened.write(raw)
    else:
        write_atomically(file, raw)


def dump_json(value: object) -> bytes:
    """Return a value as indented JSON in UTF-8, with a final line break."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sync_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the entries of a directory, are on the disk."""
    # Windows syncs only files that are open for writing.
    flags = os.O_RDWR if IS_WINDOWS and not path.is_dir() else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
        try:
            _sync_descriptor(descriptor)
        finally:
            os.close(descriptor)
    except PermissionError:
        pass  # Windows cannot open a directory
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some network drives raise this
            raise


def _sync_descriptor(descriptor: int) -> None:
    """Call fsync(). On macOS, use F_FULLFSYNC: there, fsync() leaves data in the drive's cache."""
    try:
        import fcntl

        # mypy knows the constant only on macOS, so its name is given as a string.
        fcntl.fcntl(descriptor, getattr(fcntl, "F_FULLFSYNC"))  # noqa: B009
    except (ImportError, AttributeError, OSError):  # not macOS, or not supported by the drive
        os.fsync(descriptor)


def replace_path(source: Path, target: Path) -> None:
    """Rename `source` to `target`. This replaces an existing file, but not an existing directory.

    On Windows, os.replace() fails while another process (for example, a virus scanner) has `source`
    or `target` open. So the call is repeated for up to REPLACE_TIMEOUT seconds.
    """
    deadline = time.monotonic() + REPLACE_TIMEOUT
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not IS_WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def replace_directory(directory: Path, new: Path) -> None:
    """Replace `directory` with `new`, in one step if the system can swap two directories."""
    if directory.exists():
        try:
            _swap(directory, new)
        except OSError:
            _replace_in_two_steps(directory, new)
    else:
        replace_path(new, directory)
    sync_to_disk(directory.parent)
    remove_if_present(new)
    remove_if_present(_old_name(directory))


def remove_if_present(path: Path) -> None:
    """Remove a file, a link, or a directory with its contents; errors are ignored."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _swap(one: Path, other: Path) -> None:
    """Swap two directories in one step. Raises OSError on failure, and always outside Linux."""
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    renameat2 = find_c_function("renameat2")
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "no renameat2")
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange):
        raise OSError(ctypes.get_errno(), "renameat2")


def _replace_in_two_steps(directory: Path, new: Path) -> None:
    """Rename `directory` to its backup name (.NAME.old), then rename `new` to `directory`."""
    remove_if_present(_old_name(directory))
    replace_path(directory, _old_name(directory))
    replace_path(new, directory)


def _old_name(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def resolve_interrupted_swap(directory: Path) -> Path:
    """Return `directory`, or its backup name (.NAME.old) if only the backup exists.

    Only the backup exists if _replace_in_two_steps() was interrupted between its steps.
    """
    old = _old_name(directory)
    return old if os.path.isdir(old) and not os.path.isdir(directory) else directory


# Reading.


def find_status(path: Path | str) -> os.stat_result | None:
    """Return the status of a file or directory; return None if it does not exist.

    Raises UserError if this user has no permission to find out whether it exists. In this case,
    os.path.exists() would return False.
    """
    try:
        return os.stat(path)
    except PermissionError as error:
        raise access_error(path, error) from None
    except (OSError, ValueError):  # ValueError: no path can contain a null character
        return None


def has_access(path: Path | str, mode: int) -> bool:
    """Return whether this user has the permissions `mode`, such as os.R_OK or os.W_OK | os.X_OK."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def path_exists(path: Path | str) -> bool:
    """Return whether a file or directory exists. Raises UserError like find_status()."""
    return find_status(path) is not None


def is_file(path: Path | str) -> bool:
    """Return whether a path is a regular file. Raises UserError like find_status()."""
    status = find_status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_directory(path: Path | str) -> bool:
    """Return whether a path is a directory. Raises UserError like find_status()."""
    status = find_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def require_inside(root: Path, path: Path) -> Path:
    """Return `path`. Raises UserError if links in `path` lead to a place outside `root`."""
    real_path, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    # macOS ignores case in names, so the same directory can have two spellings.
    is_inside = real_path.is_relative_to(real_root)
    if not (is_inside or any(_is_same(parent, real_root) for parent in real_path.parents)):
        advice = "replace the link with the file itself"
        raise UserError(f"{path} is a link that leads out of {root}: {advice}")
    return path


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def require_regular_file(root: Path, file: Path) -> Path:
    """Return `file`. Raises UserError if it is outside `root`, or exists but is no regular file."""
    if os.path.exists(require_inside(root, file)) and not os.path.isfile(file):
        raise damaged_error(file, "not a regular file")
    return file


def read_limited(file: Path, limit: int) -> bytes:
    """Read a file. Raises UserError if the file has more than `limit` bytes or is unreadable."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(limit + 1)
    except OSError as error:
        raise unreadable_error(file, error) from None
    if len(raw) > limit:
        raise damaged_error(file, f"larger than {limit:,} bytes")
    return raw


def read_json(file: Path, limit: int = 1 << 20) -> dict[str, Any]:
    """Read a JSON object from a file. Raises UserError like read_limited() and parse_json()."""
    return parse_json(read_limited(file, limit), file)


def parse_json(raw: bytes, file: Path) -> dict[str, Any]:
    """Parse the JSON object in `raw`, which was read from `file`.

    Raises UserError if `raw` is not a JSON object. Repeated keys, NaN, infinity and unpaired
    surrogates (code points that UTF-8 cannot encode) also raise UserError.
    """
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
        dump_json(value)  # fails for an unpaired surrogate; json.loads() does not
    except (ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None
    if not isinstance(value, dict):
        raise damaged_error(file, "not a JSON object")
    return value


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid in JSON")


def compute_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises UserError if the file is unreadable."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise unreadable_error(file, error) from None
