"""Many runs at once, each in a process of its own, spread over the GPUs that there are."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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
from .trial import Trial, read_finished_trial, run_trial


def run_all(
    runs: Sequence[RunConfig],
    at_a_time: int,
    needs_whole_device: Callable[[RunConfig], bool],
    command: str,
    on_trial: Callable[[RunConfig, Trial, int], None],
    on_message: Callable[[str], None],
) -> list[Trial]:
    """What came of runs, in their order: those that are not done yet are made, several at once.

    Spread over all GPUs, at_a_time on each, or one that wants to be alone. study is the command
    that goes on with them. told hears of every run that is done, and how many are; said of what
    went wrong. Raises UserError, Interrupted or Stopped, after which those under way are saved.
    """
    found = {run.name: trial for run in runs if (trial := read_finished_trial(run))}
    left = [run for run in runs if run.name not in found]
    for done, run in enumerate((run for run in runs if run.name in found), 1):
        _remove_weights(run)  # where the process was killed before it could
        on_trial(run, found[run.name], done)
    if left:
        for run, came in _run_in_processes(
            left, at_a_time, needs_whole_device, command, on_message
        ):
            found[run.name] = came
            on_trial(run, came, len(found))
    return [found[run.name] for run in runs]


def _run_in_processes(
    runs: Sequence[RunConfig],
    at_a_time: int,
    needs_whole_device: Callable[[RunConfig], bool],
    command: str,
    on_message: Callable[[str], None],
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
                    places = at_a_time if needs_whole_device(waiting[0]) else 1
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
                    on_message(f"{worker.run.name} {came}, and goes on.")
                if interrupts.received:
                    left = len(waiting) + len(working)
                    raise Interrupted(interrupts.received, f"with {left} runs left", command)
        finally:
            for worker in working.values():
                worker.process.terminate()  # it saves where it is
            for worker in working.values():
                worker.process.join()


class _Worker:
    """A process that makes a run."""

    def __init__(self, run: RunConfig, device: str, places: int, threads: int) -> None:
        self.run, self.device, self.places = run, device, places
        spawn = multiprocessing.get_context("spawn")
        self.problem, end = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_work, args=(run, device, threads, end))
        # Ctrl-C reaches the child, too, which inherits what is blocked: it is for the parent.
        resource_tracker.ensure_running()  # otherwise the first start begins it, which unblocks
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end.close()

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
        return read_finished_trial(self.run) or problem or f"was killed (exit code {code})"


def _work(run: RunConfig, device: str, threads: int, problem: Connection) -> None:
    """Make a run, in a process of its own."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)  # more than there are cores would wait for each other
    try:
        run_trial(replace(run, device=device), command="")  # its parent says how to go on
        _remove_weights(run)
    except Interrupted:
        pass
    except (UserError, Stopped) as error:
        problem.send(error)
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        problem.send(f"had a {str(error).splitlines()[0]}")


def _exit_with_parent() -> None:
    """Save and end when the parent is killed: nobody would know of this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _remove_weights(run: RunConfig) -> None:
    """Leave what was measured: of many runs, nobody asks for the weights."""
    assert run.out is not None
    for directory in ("best", "last"):
        remove_if_present(run.out / directory)
