"""Many runs at once, each in a process of its own, spread over the GPUs that there are."""

import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection

import torch

from ..errors import Interrupted, Stopped, UserError
from ..runs.config import RunConfig
from ..system.cores import count_cores
from ..system.devices import pick_device
from ..system.files import remove_if_present
from ..system.interrupts import Interrupts
from .trial import Trial, finished, trial


def run_all(
    runs: Sequence[RunConfig],
    at_a_time: int,
    alone: Callable[[RunConfig], bool],
    study: str,
    told: Callable[[RunConfig, Trial, int], None],
    said: Callable[[str], None],
) -> list[Trial]:
    """What came of runs, in their order: those that are not done yet are made, several at once.

    Spread over all GPUs, at_a_time on each, or one that wants to be alone. study is the command
    that goes on with them. told hears of every run that is done, and how many are; said of what
    went wrong. Raises UserError, Interrupted or Stopped, after which those under way are saved.
    """
    found = {run.name: trial for run in runs if (trial := finished(run))}
    left = [run for run in runs if run.name not in found]
    for done, run in enumerate((run for run in runs if run.name in found), 1):
        _remove_weights(run)  # where the process was killed before it could
        told(run, found[run.name], done)
    if left:
        for run, came in _spread(left, at_a_time, alone, study, said):
            found[run.name] = came
            told(run, came, len(found))
    return [found[run.name] for run in runs]


def _spread(
    runs: Sequence[RunConfig],
    at_a_time: int,
    alone: Callable[[RunConfig], bool],
    study: str,
    said: Callable[[str], None],
) -> Iterator[tuple[RunConfig, Trial]]:
    """Runs in processes of their own, each on a device: those that are done, as they get done.

    One that is killed is gone on with, twice: a study takes too long to lose it.
    """
    device = pick_device(runs[0].device)
    several = device.type == "cuda" and device.index is None
    count = torch.cuda.device_count() if several else 1
    free = {f"cuda:{i}" if several else runs[0].device: at_a_time for i in range(count)}
    waiting, killed, working = [*runs], Counter[str](), dict[int, _Worker]()
    with Interrupts() as interrupts:
        try:
            while waiting or working:
                while waiting:
                    places = at_a_time if alone(waiting[0]) else 1
                    emptiest = max(free, key=lambda name: free[name])
                    if free[emptiest] < places:
                        break
                    free[emptiest] -= places
                    threads = max(1, count_cores() * places // (count * at_a_time))
                    worker = _Worker(waiting.pop(0), emptiest, places, threads)
                    working[worker.process.sentinel] = worker
                for sentinel in connection.wait([*working], timeout=0.2):
                    assert isinstance(sentinel, int)
                    worker = working.pop(sentinel)
                    free[worker.device] += worker.places
                    came = worker.result()
                    if isinstance(came, Trial):
                        yield worker.run, came
                        continue
                    waiting.insert(0, worker.run)
                    if interrupts.received:
                        break
                    killed[worker.run.name] += 1
                    if killed[worker.run.name] == 3:
                        raise Stopped(
                            f"{worker.run.name} {came} three times, for want of memory perhaps, "
                            f"of which there is more with --at-a-time 1"
                        )
                    said(f"{worker.run.name} {came}, and goes on.")
                if interrupts.received:
                    left = len(waiting) + len(working)
                    raise Interrupted(interrupts.received, f"with {left} runs left", study)
        finally:
            for worker in working.values():
                worker.stop()
            for worker in working.values():
                worker.process.join()


class _Worker:
    """A process that makes a run."""

    def __init__(self, run: RunConfig, device: str, places: int, threads: int) -> None:
        self.run, self.device, self.places = run, device, places
        spawn = multiprocessing.get_context("spawn")
        self.problem, end = spawn.Pipe()
        self.process = spawn.Process(target=_make, args=(run, device, threads, end))
        with _block_interrupts():
            self.process.start()
        end.close()

    def stop(self) -> None:
        """Ask the process to save a checkpoint and to end."""
        with suppress(OSError):  # it has ended
            self.problem.send(None)

    def result(self) -> Trial | str:
        """What came of the run, when the process has ended, or what became of the process.

        Raises UserError or Stopped where the process did.
        """
        self.process.join()
        problem: UserError | Stopped | str | None = None
        if self.problem.poll():
            with suppress(EOFError):
                problem = self.problem.recv()
        if isinstance(problem, Exception):
            raise problem
        if problem is None and self.process.exitcode == 1:  # a bug of ours, with its traceback
            raise Stopped(f"{self.run.name} failed, as is said above")
        code = self.process.exitcode
        return finished(self.run) or problem or f"was killed (exit code {code})"


def _make(run: RunConfig, device: str, threads: int, problem: Connection) -> None:
    """Make a run, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which asks to stop
    threading.Thread(target=_end_when_asked, args=(problem,), daemon=True).start()
    torch.set_num_threads(threads)  # more than there are cores would wait for each other
    try:
        trial(replace(run, device=device), study="")  # its parent says how to go on
        _remove_weights(run)
    except Interrupted:
        pass
    except (UserError, Stopped) as error:
        problem.send(error)
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        problem.send(f"had a {str(error).splitlines()[0]}")


def _end_when_asked(problem: Connection) -> None:
    """Save a checkpoint and end when the parent asks for it, or when the parent is killed.

    The parent cannot send the signal: on Windows that would end this process at once.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel, problem])
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Within it, a process that is started never sees Ctrl-C, where the system can block signals.

    A terminal sends Ctrl-C to all processes. Without this, a process that is still importing torch
    would end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # otherwise the first start does this, and unblocks signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _remove_weights(run: RunConfig) -> None:
    """Leave what was measured: of many runs, nobody asks for the weights."""
    assert run.out is not None
    for directory in ("best", "last"):
        remove_if_present(run.out / directory)
