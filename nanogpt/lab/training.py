"""Starts, pauses and resumes runs.

Each run has its own process, which continues after the lab ends.
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError
from ..runs.config import RunConfig
from ..runs.directory import RUNS
from ..runs.memory import count_host_memory
from ..runs.parameters import count_parameters
from ..runs.presets import get_preset
from ..system.devices import pick_device, pick_precision
from ..system.files import write_atomically
from ..system.memory import format_count, require_memory
from ..text.corpora import CORPORA

MAX_PROCESSES = 2
"""Largest number of runs that train at the same time; the lab starts no more."""
HISTORY = 40
"""Number of snapshots that the lab saves of each run."""
LAB = RUNS / ".lab"
"""Directory for pasted texts, and for the output of the processes."""
MAX_TEXT_BYTES = 20_000_000
SIZES = {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024}
"""The sizes of a model that the page may set, with their largest values."""


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    log: Path


class Trainings:
    """The training processes that this lab has started."""

    def __init__(self) -> None:
        self._processes: dict[str, _Process] = {}

    def start(self, preset: str, data: str, sizes: Mapping[str, object]) -> str:
        """Start a run, and return its name. plan_run() explains `sizes`.

        Raises UserError for a wrong setting, if the run needs too much memory, or if
        MAX_PROCESSES runs are training.
        """
        plan = plan_run(preset, sizes)
        if data not in CORPORA and Path(data).parent != LAB:
            raise UserError("this text is not offered: choose a corpus, or paste a text")
        number = 1
        while os.path.lexists(RUNS / (name := f"lab-{preset}-{number}")):
            number += 1
        words = ["train", preset, "--data", data, "--name", name]
        words += ["--train.history", str(HISTORY), "--sample-tokens", "0"]
        words += ["--optim.warmup", str(plan.optim.warmup)]
        for size, value in sizes.items():
            part = "train" if size == "steps" else "model"
            words += [f"--{part}.{size.replace('_', '-')}", str(value)]
        self._launch(name, words)
        return name

    def resume(self, name: str, run: Path) -> None:
        """Continue a paused run from its last checkpoint."""
        if not self.is_running(name):
            self._launch(name, ["train", "--resume", str(run), "--sample-tokens", "0"])

    def pause(self, name: str, run: Path) -> None:
        """Make the process of a run save a checkpoint and end.

        Raises UserError if no process trains the run.
        """
        if self.is_running(name):
            self._processes[name].process.terminate()
            return
        if not is_locked(run):
            raise UserError(f"the run {name!r} is not training")
        with suppress(OSError, ValueError):  # another lab, or the command line, started the process
            os.kill(int((run / ".pid").read_text("ascii")), signal.SIGTERM)

    def is_running(self, name: str) -> bool:
        """Return whether a process of this lab trains the run."""
        process = self._processes.get(name)
        return process is not None and process.process.poll() is None

    def failure(self, name: str) -> str | None:
        """Return the last message of the run's process if the process failed, otherwise None."""
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
        running = {run for run in self._processes if self.is_running(run)}
        running |= {file.parent.name for file in RUNS.glob("*/.lock") if is_locked(file.parent)}
        if len(running) >= MAX_PROCESSES:
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


def is_locked(run: Path) -> bool:
    """Return whether any process trains the run, even if this lab did not start the process."""
    try:
        with FileLock(run / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # this user has no permission to train the run
        return False


def plan_run(preset: str, sizes: Mapping[str, object]) -> RunConfig:
    """Return the configuration of a run; the keys of `sizes` are keys of SIZES or "steps".

    Raises UserError for a wrong size, or if the machine has too little memory for the run.
    """
    config = get_preset(preset).config
    if unknown := sizes.keys() - SIZES.keys() - {"steps"}:
        raise UserError(f"{min(unknown)!r} cannot be set here")
    numbers = {name: _parse_size(name, value) for name, value in sizes.items()}
    steps = numbers.pop("steps", config.train.steps)
    for name in numbers:
        if not hasattr(config.model, name):
            raise UserError(f"{name!r} is not a setting of the preset {preset!r}")
    try:
        model = replace(config.model, **numbers)  # type: ignore[arg-type]
        warmup = min(config.optim.warmup, steps // 10)  # leaves enough steps for the decay
        config = replace(
            config,
            model=model,
            optim=replace(config.optim, warmup=warmup),
            train=replace(config.train, steps=steps),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    device = pick_device(config.device)
    require_memory(
        count_host_memory(config, device, pick_precision(config.precision, device)),
        f"training a model with {format_count(count_parameters(model)[-1].value)} parameters",
        "choose smaller sizes",
    )
    for name, value in numbers.items():
        if value > SIZES[name]:
            raise UserError(f"{name} is {value}: it must be between 1 and {SIZES[name]}")
    return config


def _parse_size(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise UserError(f"{name} is {value!r}: it must be a whole number") from None


def save_text(raw: bytes) -> str:
    """Save a pasted text and return its path for --data. Raises UserError for an invalid text."""
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
