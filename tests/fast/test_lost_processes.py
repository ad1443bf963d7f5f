"""A process that ends or hangs ends all processes of its run, and the run can be resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fast.test_parallel import MUON, run, torchrun
from tests.ports import free_port
from tests.same import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="stops a process with SIGSTOP"),
]
OUT = Path("runs/broken")
LINE = (
    "nanogpt: another process of this run has ended, or does not answer: see its message, then "
    f"resume with: nanogpt train --resume {OUT}"
)
# The arguments are the place where a process is lost, how, its rank, and those of nanogpt.
SCRIPT = """
import json, os, signal, sys, time, torch
from nanogpt import train
from nanogpt.cli.main import main
from nanogpt.fast import parallel
from nanogpt.fast.parallel import ParallelStepper
from nanogpt.models.modern import Block
from nanogpt.runs.keeper import CheckpointKeeper
from nanogpt.system import distributed

place, how, rank, *arguments = sys.argv[1:]
if how == "hang without timeout":  # as in the CUDA graph of a step
    distributed.TIMEOUT = distributed.PATIENCE
owner, name, call = {
    "step": (ParallelStepper, "update", 14),
    "block": (Block, "forward", 14 * 4),  # in each step, 2 blocks process 2 parts of a batch
    "evaluation": (train, "evaluate", 3),
    "checkpoint": (CheckpointKeeper, "save_last", 2),
}[place]
unchanged, calls = getattr(owner, name), 0

def lose(*args):
    global calls
    calls += torch.is_grad_enabled()  # evaluations use the blocks, too
    if calls == call and os.environ["RANK"] in rank.split(","):
        with open("lost.json", "w") as file:
            json.dump([os.getpid(), time.monotonic()], file)
        if how.startswith("slow"):
            result = unchanged(*args)
            time.sleep(25)
            return result
        if "hang" in how:
            time.sleep(1000)
        if how == "memory":
            raise MemoryError
        os.kill(os.getpid(), signal.Signals[how])
    return unchanged(*args)

if place == "block":  # as on a GPU
    initialise = ParallelStepper.__init__
    def initialise_and_report(stepper, run, mean_loss):
        initialise(stepper, run, mean_loss)
        parallel.report_blocks(run.model)
    ParallelStepper.__init__ = initialise_and_report
setattr(owner, name, lose)
main(arguments)
"""


@pytest.fixture
def arguments(text_file: Path) -> Iterator[list[str]]:
    """The arguments of nanogpt for a small run; at the end, a stopped process is killed."""
    Path("script.py").write_text(SCRIPT, "utf-8")
    yield ["train", *MUON, "--data", str(text_file), "--out", str(OUT)]
    with suppress(OSError):
        os.kill(json.loads(Path("lost.json").read_bytes())[0], signal.SIGKILL)


def seconds_since_loss() -> float:
    lost: float = json.loads(Path("lost.json").read_bytes())[1]
    return time.monotonic() - lost


def resume() -> None:
    """Resume the run from the checkpoint of the last evaluation."""
    command = [sys.executable, "-m", "nanogpt", "train", "--resume", str(OUT)]
    assert run([*command, "--sample-tokens", "0"]) == (0, [])
    assert [record["step"] for record in metrics(OUT)] == list(range(25))


@pytest.mark.parametrize(
    ("place", "how", "rank"),
    [
        ("step", "SIGKILL", 1),
        ("step", "SIGSTOP", 0),
        ("step", "hang", 1),
        ("step", "hang without timeout", 1),
        ("step", "hang without timeout", 0),
        ("block", "hang without timeout", 1),
        ("evaluation", "SIGSTOP", 1),
        ("checkpoint", "SIGSTOP", 0),
    ],
)
def test_a_lost_process_ends_all(arguments: list[str], place: str, how: str, rank: int) -> None:
    script = ["script.py", place, how, str(rank)]
    status, lines = run(torchrun(2, *arguments, program=script))
    assert status != 0
    assert seconds_since_loss() < 60  # about 20 on an idle machine
    assert lines == [LINE]
    resume()


@pytest.mark.parametrize("ranks", ["1", "0,1"])
def test_a_lack_of_memory_is_reported_once(arguments: list[str], ranks: str) -> None:
    """The advice helps a single process, too: each part of the batch is smaller than before."""
    script = ["script.py", "step", "memory", ranks]
    status, lines = run(torchrun(2, *arguments, program=script))
    assert status != 0
    message = (
        "out of memory: an unknown amount more was requested; the same batch in smaller parts "
        f"needs less memory: nanogpt train --resume {OUT} "
        "--train.batch-size 24 --train.accumulation 6"
    )
    if ranks == "1":
        assert sorted(lines) == [LINE, f"nanogpt: process 1: {message}"]
    else:
        assert lines == [f"nanogpt: {message}"]


@pytest.mark.parametrize(("place", "lost"), [("evaluation", 1), ("evaluation", 0), ("step", 0)])
def test_a_lost_machine_ends_the_others(arguments: list[str], place: str, lost: int) -> None:
    """Nothing on the other machine can kill the stopped process. The first one keeps the store."""
    port, outputs, processes = free_port(), [Path("0.txt"), Path("1.txt")], []
    for machine, output in enumerate(outputs):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        launcher += ["--node-rank", str(machine), "--master-addr", "127.0.0.1"]
        launcher += ["--master-port", str(port), "script.py", place, "SIGSTOP", str(lost)]
        with output.open("wb") as file:  # not a pipe: the stopped process would keep it open
            processes.append(subprocess.Popen([*launcher, *arguments], stderr=file))
    try:
        while not Path("lost.json").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        processes[lost].send_signal(signal.SIGSTOP)
        while b"nanogpt: " not in outputs[1 - lost].read_bytes():
            assert seconds_since_loss() < 60
            time.sleep(0.1)
        assert re.findall("nanogpt: .*", outputs[1 - lost].read_text("utf-8")) == [LINE]
        if lost == 1:  # otherwise, torchrun itself waits for the first machine
            assert processes[0].wait(timeout=30) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with suppress(OSError):
        os.kill(json.loads(Path("lost.json").read_bytes())[0], signal.SIGKILL)
    resume()
