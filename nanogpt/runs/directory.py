"""The directory of a run: made, found, and kept to one training at a time.

runs/<name>/
  run.json          the resolved configuration, versions, device
  metrics.jsonl     one object a line
  loss.png          the curve
  best/             the checkpoint with the lowest validation loss
  last/             the newest checkpoint, and what an exact resume needs
  .lock             held by the process that trains
  .pid              the number of that process
"""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError
from ..system.files import require_inside, resolve_interrupted_swap, sync_to_disk

RUNS = Path("runs")


def make_run_directory(out: Path | None, name: str) -> tuple[Path, FileLock]:
    """Make and lock a run directory: out, or the first free of runs/NAME, runs/NAME-2, …

    Raises UserError. An out that already holds a run is refused; nothing in it is touched.
    """
    directory = out or _free(RUNS / name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sync_to_disk(directory.parent)
        lock = lock_run(directory)
    except OSError as error:
        raise UserError(
            f"cannot write in {directory}: {error.strerror}; name another directory with --out"
        ) from None
    if (directory / "run.json").exists() or (directory / "best").exists():
        lock.release()
        raise UserError(
            f"{directory} already holds a run: name another, such as --out {_free(directory)}, "
            f"or go on with it: --resume {directory}"
        )
    return directory, lock


def _free(directory: Path) -> Path:
    number, free = 1, directory
    while free.exists():
        number += 1
        free = directory.with_name(f"{directory.name}-{number}")
    return free


def lock_run(directory: Path) -> FileLock:
    """Lock a run directory until release(), or until this process ends, however it ends.

    Raises UserError where another process holds it, or where something in it is a link: a run
    that is trained has none, and one of a stranger could lead anywhere.
    """
    for entry in directory.iterdir():
        if entry.is_symlink():
            raise UserError(f"{entry} is a link: to train there, put the file itself in its place")
    file = directory / ".pid"  # not the lock itself: Windows lets nobody read or write that
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"process {_read_pid(file)} is training in {directory}: wait for it, stop it, "
            f"or name another directory with --out"
        ) from None
    try:
        file.write_bytes(f"{os.getpid()}\n".encode())
    except OSError:
        lock.release()
        raise
    return lock


def _read_pid(file: Path) -> str:
    try:
        return str(int(file.read_text("ascii")))
    except (OSError, ValueError):  # the other process has not written it yet
        return "unknown"


def find_run(run: str | None, checkpoint: str = "best") -> Path:
    """The run directory that run names, as a path or below runs/; None is the newest.

    Raises UserError unless it holds the checkpoint, best or last.
    """
    if run is None:
        found = RUNS.glob(f"*/{checkpoint}/config.json")
        saved = sorted(found, key=lambda file: file.stat().st_mtime)
        if not saved:
            raise UserError(f"there is no run in {RUNS}/ yet: make one with `nanogpt train`")
        return saved[-1].parent.parent
    for directory in (Path(run), RUNS / run):
        if os.path.isdir(resolve_interrupted_swap(directory / checkpoint)):
            require_inside(directory, directory / checkpoint)
            return directory
        if checkpoint == "best" and os.path.isdir(resolve_interrupted_swap(directory / "last")):
            raise UserError(
                f"{directory} was stopped before its first evaluation: go on with "
                f"nanogpt train --resume {directory}"
            )
    if os.path.isdir(run):
        raise UserError(f"{run} holds no run: it has no {checkpoint}/; train one with --out")
    known = ", ".join(sorted(str(file.parent) for file in RUNS.glob("*/best"))) or "none yet"
    raise UserError(f"there is no run {run}; the runs in {RUNS}/: {known}")
