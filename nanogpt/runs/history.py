"""Snapshots of a run: checkpoints without the state of training, in RUN/history/STEP/."""

import shutil
from functools import lru_cache
from pathlib import Path

from ..system.files import find_status

HISTORY = "history"
"""Name of the directory in a run directory that contains the snapshots."""


@lru_cache
def plan_snapshots(steps: int, count: int) -> tuple[int, ...]:
    """Return the steps of `count` snapshots of a run: 0, and steps from 1 to the last step.

    The logarithms of the steps after 0 are evenly spaced, as far as whole numbers allow. A run
    of fewer than `count` steps has a snapshot at each step.
    """
    planned = [0, 1][:count]
    while len(planned) < count and planned[-1] < steps:
        last, left = planned[-1], count - len(planned)
        planned.append(max(last + 1, round(last * (steps / last) ** (1 / left))))
    return tuple(planned)


def snapshot_directory(run: Path, step: int) -> Path:
    """Return the directory of the snapshot at a step."""
    return run / HISTORY / str(step)


def list_snapshots(run: Path) -> list[int]:
    """Return the steps of the complete snapshots of a run, in order."""
    history = run / HISTORY
    if not find_status(history):
        return []
    return sorted(int(entry.name) for entry in history.iterdir() if entry.name.isdecimal())


def remove_later_snapshots(run: Path, step: int) -> None:
    """Remove the snapshots after a step: a run that resumes at this step saves them again."""
    for later in list_snapshots(run):
        if later > step:
            shutil.rmtree(snapshot_directory(run, later))
