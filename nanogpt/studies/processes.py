"""Trains many runs in parallel, each in its own process, on one device or on all GPUs."""

import multiprocessing
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..errors import Interrupted, Stopped, UserError
from ..runs.config import RunConfig
from ..system.cores import count_cores
from ..system.devices import pick_device
from ..system.files import remove_if_present
from ..system.interrupts import Interrupts, raise_interrupted
from .trial import Trial, read_finished_trial, run_trial

# Importing the modules takes seconds. On Linux, workers are forked from a process that has already
# imported them. Windows has no fork, and on macOS a forked process may crash.
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload([__name__, "matplotlib.figure", "matplotlib.backends.backend_agg"])

MAX_FAILURES = 3
"""The study stops after this many failures of one run (a killed process or a CUDA error)."""


def run_all(
    runs: Sequence[RunConfig],
    at_a_time: int,
    needs_whole_device: Callable[[RunConfig], bool],
    command: str,
    on_trial: Callable[[RunConfig, Trial, int], None],
    on_message: Callable[[str], None],
    unneeded: Sequence[str] = ("best", "last"),
) -> list[Trial]:
    """Train the unfinished runs, and return the results of all runs in the order of `runs`.

    Trains up to `at_a_time` runs in parallel on each device. If needs_whole_device(run) is true,
    this run does not share its device. `command` is the command line that resumes the study. Calls
    `on_trial` with each run, its result and the number of finished runs; calls `on_message` when a
    process fails. Deletes the checkpoints `unneeded` of finished runs. Raises UserError,
    Interrupted or Stopped; before that, waits until all running processes have saved a checkpoint.
    """
    trials = {run.name: trial for run in runs if (trial := read_finished_trial(run))}
    unfinished = [run for run in runs if run.name not in trials]
    for done, run in enumerate((run for run in runs if run.name in trials), 1):
        _remove_weights(run, unneeded)  # a process that was killed may have left checkpoints
        on_trial(run, trials[run.name], done)
    if unfinished:
        for run, trial in _run_in_processes(
            unfinished, at_a_time, needs_whole_device, command, on_message, unneeded
        ):
            trials[run.name] = trial
            on_trial(run, trial, len(trials))
    return [trials[run.name] for run in runs]


def _run_in_processes(
    runs: Sequence[RunConfig],
    at_a_time: int,
    needs_whole_device: Callable[[RunConfig], bool],
    command: str,
    on_message: Callable[[str], None],
    unneeded: Sequence[str],
) -> Iterator[tuple[RunConfig, Trial]]:
    """Yield each run and its result as soon as the run is finished.

    If the process of a run is killed or has a CUDA error, the run resumes from its last checkpoint,
    up to MAX_FAILURES - 1 times.
    """
    device = pick_device(runs[0].device)
    use_all_gpus = device.type == "cuda" and device.index is None
    n_devices = torch.cuda.device_count() if use_all_gpus else 1
    names = [f"cuda:{i}" for i in range(n_devices)] if use_all_gpus else [runs[0].device]
    free_slots = dict.fromkeys(names, at_a_time)
    waiting, failures, workers = [*runs], Counter[str](), dict[int, _Worker]()
    with Interrupts() as interrupts:
        try:
            while waiting or workers:
                while waiting:
                    slots = at_a_time if needs_whole_device(waiting[0]) else 1
                    name = max(free_slots, key=lambda name: free_slots[name])
                    if free_slots[name] < slots:
                        break
                    free_slots[name] -= slots
                    threads = max(1, count_cores() * slots // (n_devices * at_a_time))
                    worker = _Worker(waiting.pop(0), name, slots, threads, unneeded)
                    workers[worker.process.sentinel] = worker
                for sentinel in connection.wait([*workers], timeout=0.2):
                    assert isinstance(sentinel, int)
                    worker = workers.pop(sentinel)
                    free_slots[worker.device] += worker.slots
                    result = worker.result()
                    if isinstance(result, Trial):
                        yield worker.run, result
                        continue
                    waiting.insert(0, worker.run)
                    if interrupts.received:
                        break
                    failures[worker.run.name] += 1
                    if failures[worker.run.name] == MAX_FAILURES:
                        raise Stopped(
                            f"{worker.run.name} {result} {MAX_FAILURES} times, "
                            f"possibly because memory ran out: try --at-a-time 1"
                        )
                    on_message(f"{worker.run.name} {result}; it resumes from its last checkpoint.")
                if interrupts.received:
                    n_left = len(waiting) + len(workers)
                    saved = f"the running models; runs left: {n_left}"
                    raise Interrupted(interrupts.received, saved, command)
        finally:
            for worker in workers.values():
                worker.stop()
            for worker in workers.values():
                worker.process.join()


class _Worker:
    """A process that trains one run."""

    def __init__(
        self, run: RunConfig, device: str, slots: int, threads: int, unneeded: Sequence[str]
    ) -> None:
        self.run, self.device, self.slots = run, device, slots
        self.connection, child_end = multiprocessing.Pipe()
        args = run, device, threads, unneeded, child_end
        self.process = _CONTEXT.Process(target=_work, args=args)
        with _block_interrupts():
            self.process.start()
        child_end.close()

    def stop(self) -> None:
        """Ask the process to save a checkpoint and to end."""
        with suppress(OSError):  # the process has already ended
            self.connection.send(None)

    def result(self) -> Trial | str:
        """Wait for the process, and return the trial or the reason why there is no trial.

        Raises the UserError or Stopped that the process raised. For any other exception, except a
        CUDA error, raises Stopped.
        """
        self.process.join()
        problem: UserError | Stopped | str | None = None
        if self.connection.poll():
            with suppress(EOFError):
                problem = self.connection.recv()
        if isinstance(problem, Exception):
            raise problem
        if problem is None and self.process.exitcode == 1:  # an uncaught exception
            raise Stopped(f"{self.run.name} failed: see the traceback above")
        reason = problem or f"was killed (exit code {self.process.exitcode})"
        return read_finished_trial(self.run) or reason


def _work(
    run: RunConfig, device: str, threads: int, unneeded: Sequence[str], parent: Connection
) -> None:
    """Train a run on a device; this is the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and calls stop()
    threading.Thread(target=_end_when_asked, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)  # more threads than cores would slow down all processes
    try:
        with raise_interrupted():
            run_trial(replace(run, device=device), command="")  # the parent reports interruptions
            _remove_weights(run, unneeded)
    except Interrupted:
        pass
    except (UserError, Stopped) as error:
        parent.send(error)
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        parent.send(f"had a {str(error).splitlines()[0]}")


def _end_when_asked(parent: Connection) -> None:
    """Wait until the parent sends a request or ends; then send SIGTERM to this process.

    At this signal, the training saves a checkpoint and ends. The parent itself must not send
    the signal: on Windows, that would kill this process immediately.
    """
    process = multiprocessing.parent_process()
    assert process is not None
    connection.wait([process.sentinel, parent])
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """A process that starts within this context ignores Ctrl-C, if the system can block signals.

    A terminal sends Ctrl-C to all processes of a command. A process that is still importing torch
    would end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting this tracker can unblock SIGINT, so do it first
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _remove_weights(run: RunConfig, unneeded: Sequence[str]) -> None:
    """Delete those checkpoints of a finished run that its study does not need."""
    assert run.out is not None
    for directory in unneeded:
        remove_if_present(run.out / directory)
