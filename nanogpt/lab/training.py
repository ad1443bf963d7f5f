"""Starts, pauses and resumes runs. Each run has its own process, which outlives the lab."""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError
from ..runs.directory import RUNS
from ..runs.presets import get_preset
from ..system.files import write_atomically
from ..text.corpora import CORPORA

MAX_PROCESSES = 2
"""Maximum number of runs that the lab trains at the same time."""
HISTORY = 40
"""Number of snapshots that a run of the lab keeps."""
LAB = RUNS / ".lab"
"""Directory for pasted texts, and for what the processes print."""
MAX_TEXT_BYTES = 20_000_000
SIZES = {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024}
"""The sizes of a model that the page may set, with their largest values."""


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    log: Path


class Trainings:
    """The processes that train the runs of the lab."""

    def __init__(self) -> None:
        self._processes: dict[str, _Process] = {}

    def start(self, preset: str, data: str, steps: int, sizes: dict[str, int]) -> str:
        """Start a run, and return its name. Raises UserError for a wrong setting."""
        kind = get_preset(preset).config.model
        if unknown := sizes.keys() - SIZES.keys():
            raise UserError(f"{min(unknown)} cannot be set here")
        for name, value in sizes.items():
            if not 1 <= value <= SIZES[name]:
                raise UserError(f"{name} is {value}: it must be between 1 and {SIZES[name]}")
            if not hasattr(kind, name):
                raise UserError(f"{name} is not a setting of {preset}")
        if data not in CORPORA and Path(data).parent != LAB:
            raise UserError("this text is not offered: choose a corpus, or paste a text")
        number = 1
        while os.path.lexists(RUNS / (name := f"lab-{preset}-{number}")):
            number += 1
        words = ["train", preset, "--data", data, "--name", name, "--train.steps", str(steps)]
        words += ["--train.history", str(HISTORY), "--sample-tokens", "0"]
        for size, value in sizes.items():
            words += [f"--model.{size.replace('_', '-')}", str(value)]
        self._launch(name, words)
        return name

    def resume(self, name: str, run: Path) -> None:
        """Continue a paused run from its last checkpoint."""
        if not self.is_running(name):
            self._launch(name, ["train", "--resume", str(run), "--sample-tokens", "0"])

    def pause(self, name: str, run: Path) -> None:
        """Let the process of a run save a checkpoint and end. Raises UserError if none trains."""
        if self.is_running(name):
            self._processes[name].process.terminate()
            return
        try:  # the lab was started again: the process of the run is not its child
            with FileLock(run / ".lock", timeout=0):
                pass
        except Timeout:
            with suppress(OSError, ValueError):
                os.kill(int((run / ".pid").read_text("ascii")), signal.SIGTERM)
            return
        raise UserError(f"{name} is not training")

    def is_running(self, name: str) -> bool:
        """Return whether a process of this lab trains the run."""
        process = self._processes.get(name)
        return process is not None and process.process.poll() is None

    def failure(self, name: str) -> str | None:
        """Return the message of a process that failed; None if it did not."""
        entry = self._processes.get(name)
        if entry is None or entry.process.poll() in (None, 0, 130, 143):
            return None
        lines = entry.log.read_text("utf-8", "replace").strip().splitlines()
        return (
            lines[-1].removeprefix("nanogpt: ") if lines else "the process ended without a message"
        )

    def started(self) -> list[str]:
        """Return the names of the runs that this lab has started."""
        return [*self._processes]

    def _launch(self, name: str, words: list[str]) -> None:
        if sum(map(self.is_running, self._processes)) >= MAX_PROCESSES:
            raise UserError(
                f"{MAX_PROCESSES} runs are training: pause one before you start another"
            )
        LAB.mkdir(parents=True, exist_ok=True)
        log = LAB / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanogpt", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal of the lab does not stop the run
            )
        self._processes[name] = _Process(process, log)


def save_text(raw: bytes) -> str:
    """Save a pasted text, and return its path for --data. Raises UserError if it cannot be used."""
    if len(raw) > MAX_TEXT_BYTES:
        raise UserError(f"the text has {len(raw):,} bytes: use at most {MAX_TEXT_BYTES:,}")
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise UserError("the text is not UTF-8: save it as UTF-8 first") from None
    LAB.mkdir(parents=True, exist_ok=True)
    path = LAB / f"{hashlib.sha256(raw).hexdigest()[:16]}.txt"
    write_atomically(path, raw)
    return str(path)
