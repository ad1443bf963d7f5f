"""Creates, finds and locks run directories.

    runs/<name>/
      run.json          a header, the configuration with all defaults, the SHA-256 of the text, the
                        number of parameters, the bigram baseline, device, precision, versions
      metrics.jsonl     one JSON object per line (see journal.Record)
      loss.png          the losses over the steps
      best/             the checkpoint with the lowest validation loss
      last/             the newest checkpoint, with everything that an exact resume needs
      history/STEP/     snapshots of the weights, if train.history is not 0
      .lock             locked by the process that trains
      .pid              the ID of the process that trains

checkpoint.py describes best/ and last/; formats.py describes the header of run.json.
"""

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError, access_error, is_denied, join_command, resume_command
from ..system.files import (
    find_status,
    has_access,
    is_directory,
    is_file,
    require_inside,
    resolve_interrupted_swap,
    sync_to_disk,
)
from ..text.tokenizers import is_tokenizer_kind

RUNS = Path("runs")
EARLY_FILES = {".lock", ".pid", "metrics.jsonl", "loss.png", "last"}
"""Files that a run may write before run.json, which marks the directory as a run."""
SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers create. A directory that has only these files is treated as empty."""


def make_run_directory(out: Path | None, name: str) -> tuple[Path, FileLock]:
    """Create and lock a run directory: `out`, or the first free name of runs/NAME, runs/NAME-2, …

    Raises UserError if the directory cannot be created, holds a run, or contains other files.
    """
    try:
        directory = _make_new(RUNS / name) if out is None else out
        directory.mkdir(parents=True, exist_ok=True)
        sync_to_disk(directory.parent)
        entries = {entry.name for entry in directory.iterdir()}
        lock = lock_run(directory, "wait for it, stop it, or name another directory with --out")
    except OSError as error:
        directory = out or RUNS / name
        raise UserError(
            f"cannot write in {directory}: {error.strerror}; name another directory with --out"
        ) from None
    if (directory / "run.json").exists() or (directory / "best").exists():
        lock.release()
        raise UserError(
            f"{directory} already holds a run: name another directory, such as --out "
            f"{join_command([_find_free(directory)])}, or resume this run with --resume "
            f"{join_command([directory])}"
        )
    # If .pid exists, a run ended before it wrote run.json, so its EARLY_FILES may be replaced.
    others = entries - SYSTEM_FILES
    if ".pid" in entries:
        others = {n for n in others - EARLY_FILES if not (n[0] == "." and n.endswith(".new"))}
    if others:
        lock.release()
        for ours in {".lock", ".pid"} - entries:
            (directory / ours).unlink(missing_ok=True)
        raise UserError(
            f"{directory} contains files that do not belong to a run, such as {min(others)}: name "
            f"an empty or a new directory with --out"
        )
    return directory, lock


def _make_new(directory: Path) -> Path:
    """Create the first of `directory`, `directory`-2, `directory`-3, … that does not exist."""
    while True:
        free = _find_free(directory)
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:
            if not os.path.lexists(free):  # runs/ is a broken link
                raise
            # Another process has just created this directory: try the next number.


def _find_free(directory: Path) -> Path:
    """Return the first of `directory`, `directory`-2, `directory`-3, … that does not exist."""
    number, path = 1, directory
    while os.path.lexists(path):
        number += 1
        path = directory.with_name(f"{directory.name}-{number}")
    return path


def lock_run(directory: Path, advice: str = "wait for it or stop it") -> FileLock:
    """Lock a run directory until release() is called, or until this process ends.

    Raises UserError, with `advice`, if another process holds the lock. Raises UserError if the
    directory contains a symbolic link: training creates no links, and a link in an untrusted run
    could point to any file. Raises OSError if this user has no permission to write in the directory
    or in its checkpoints.
    """
    for entry in directory.iterdir():
        if entry.is_symlink():
            raise UserError(
                f"{entry} is a link: to train here, replace the link with the file or directory "
                f"that it points to"
            )
    file = directory / ".pid"  # on Windows, other processes cannot read .lock
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"process {_read_pid(file)} is training in {directory}: {advice}") from None
    try:
        file.write_bytes(f"{os.getpid()}\n".encode())
        for checkpoint in filter(Path.is_dir, (directory / "last", directory / "best")):
            if not has_access(checkpoint, os.W_OK | os.X_OK):  # training replaces it
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(checkpoint))
    except OSError:
        lock.release()
        raise
    return lock


def _read_pid(file: Path) -> str:
    try:
        return str(int(file.read_text("ascii")))
    except (OSError, ValueError):  # the other process has not written the file yet
        return "unknown"


def find_run(run: str | None, checkpoint: str = "best") -> Path:
    """Return the directory of a run.

    `run` is the path of the run or its name in runs/; None means the newest run. Raises UserError
    if the run does not contain `checkpoint`, which is "best" or "last".
    """
    if run is None:
        runs = _list_runs(f"{checkpoint}/config.json")
        if not runs:
            raise UserError(f"there is no run in {RUNS}/ yet: train one with `nanogpt train`")
        return max(runs, key=lambda directory: runs[directory])
    for directory in (Path(run), RUNS / run) if run else ():
        if is_directory(resolve_interrupted_swap(directory / checkpoint)):
            require_inside(directory, directory / checkpoint)
            return directory
        if checkpoint == "best" and is_directory(resolve_interrupted_swap(directory / "last")):
            raise UserError(
                f"{directory} was stopped before its first evaluation: resume it with "
                f"{resume_command(directory)}"
            )
    for directory in (Path(run), RUNS / run) if checkpoint == "last" and run else ():
        if is_directory(directory / "best"):
            raise UserError(
                f"{directory} has no last checkpoint (an imported run never has one): begin a run "
                f"with its weights, with --start-from {join_command([directory])}"
            )
    if is_directory(run):
        raise UserError(f"{run} is not a run: it has no {checkpoint}/; give the directory of a run")
    known = ", ".join(map(str, _list_runs("best"))) or "none yet"
    raise UserError(f"there is no run '{run}'; the runs in {RUNS}/: {known}")


def _list_runs(file: str) -> dict[Path, float]:
    """Map each run in RUNS that contains `file` to the modification time of `file`.

    The runs are sorted by name. Runs that this user has no permission to read are left out. Raises
    UserError if runs were left out and none remains.
    """
    runs: dict[Path, float] = {}
    denied = None
    try:
        directories = sorted(RUNS.iterdir())
    except OSError as error:
        if is_denied(error):
            raise access_error(RUNS, error) from None
        return runs
    for directory in directories:
        try:
            if status := find_status(directory / file):
                runs[directory] = status.st_mtime
        except UserError as error:
            denied = error
    if denied and not runs:
        raise denied
    return runs


def find_tokenizer(kind: str) -> str:
    """If `kind` names a run, return the path of the run's tokenizer.json; otherwise return `kind`.

    Raises UserError if the run has no best checkpoint.
    """
    is_run = is_directory(kind) or is_directory(RUNS / kind)
    if is_tokenizer_kind(kind) or is_file(kind) or not is_run:
        return kind
    return str(resolve_interrupted_swap(find_run(kind) / "best") / "tokenizer.json")
