"""Several processes train the run that one process would have trained."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nanogpt.api import load
from nanogpt.evaluate import evaluate
from nanogpt.fast import parallel, training
from nanogpt.fast.parallel import share_orthogonalisation
from nanogpt.models import GPTConfig
from nanogpt.muon import orthogonalise
from nanogpt.runs.config import RunConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.system import distributed
from tests.marks import slow
from tests.same import metrics

MUON = [
    *("tiny-fast", "--model.n-layer", "2", "--model.n-embd", "32", "--model.block-size", "16"),
    *("--train.steps", "24", "--train.eval-every", "12", "--train.log-every", "1"),
    *("--optim.decay-steps", "24", "--train.batch-size", "24", "--train.accumulation", "2"),
    *("--optim.normalise-rows", "--optim.grad-clip", "0.5", "--optim.ema", "0.9"),
    *("--device", "cpu", "--precision", "float32", "--sample-tokens", "0"),
]


@pytest.mark.parametrize(
    ("preset", "batch_size", "is_small"),
    [("tiny", 32, True), ("tiny-fast", 64, True), ("tiny", 1000, False), ("baby", 64, False)],
)
def test_a_run_that_several_gpus_hardly_accelerate_says_so(
    text_file: Path, preset: str, batch_size: int, is_small: bool
) -> None:
    config = replace(PRESETS[preset].config, data=str(text_file), device="cpu")
    train = replace(config.train, batch_size=batch_size, ngram_weight=0.0)
    run = prepare_run(replace(config, train=train))
    assert parallel.warn_of_small_steps(run) == []  # on a CPU, docs/scale.md says more
    lines = parallel.warn_of_small_steps(replace(run, device=torch.device("cuda")))
    assert [line.startswith("The steps of this run are so small") for line in lines] == (
        [True] if is_small else []
    )


def test_a_message_about_small_steps_is_shown(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PRESETS["tiny"].config, data=str(text_file), device="cpu")
    run = prepare_run(config)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, value])
    monkeypatch.setattr(parallel, "ParallelStepper", lambda *_: None)
    monkeypatch.setattr(parallel, "warn_of_small_steps", lambda run: ["small"])
    lines: list[str] = []
    parallel.make_stepper(run, lines.append)
    assert lines == ["small"]


def torchrun(
    processes: int, *arguments: object, program: Sequence[str] = ("-m", "nanogpt")
) -> list[str]:
    """Return the command that starts a program in several processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes)]
    return [*launcher, *program, *map(str, arguments)]


def run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command; return its status, and the lines of nanogpt on standard error."""
    with Path("errors.txt").open("wb") as errors:  # not a pipe: a process that hangs keeps it open
        status = subprocess.run(command, stderr=errors, timeout=120).returncode
    lines = Path("errors.txt").read_text("utf-8").splitlines()
    return status, [line for line in lines if line.startswith("nanogpt: ")]


def assert_same_losses(one: Path, other: Path) -> None:
    """Require that all lines of metrics.jsonl agree to 1e-6, and the best weights to 1e-4."""
    expected, found = metrics(one), metrics(other)
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert math.isclose(a[name], b[name], rel_tol=1e-6, abs_tol=1e-6), (a["step"], name)
    models = load(one, "cpu").model, load(other, "cpu").model
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


@pytest.fixture
def alone(text_file: Path) -> list[str]:
    """Arguments of `nanogpt train`, after one process has trained runs/alone with them."""
    arguments = ["train", *MUON, "--data", str(text_file), "--transfer", str(text_file)]
    arguments += ["--train.ngram-weight", "0.1"]
    status, lines = run([sys.executable, "-m", "nanogpt", *arguments, "--out", "runs/alone"])
    assert (status, lines) == (0, [])
    return arguments


@pytest.mark.parametrize("processes", [2, slow(4)])
def test_the_losses_are_those_of_one_process(alone: list[str], processes: int) -> None:
    status, lines = run(torchrun(processes, *alone, "--out", "runs/together"))
    assert (status, lines) == (0, [])
    assert_same_losses(Path("runs/alone"), Path("runs/together"))
    assert sorted(os.listdir("runs/together")) == sorted(os.listdir("runs/alone"))


CAPTURED = """
from nanogpt.cli.main import main
from nanogpt.fast import parallel

parallel.ParallelStepper = parallel.CapturedParallelStepper
parallel.BUCKET_BYTES = 5000
main()
"""


def test_steps_that_are_planned_ahead_have_the_same_losses(alone: list[str]) -> None:
    """On a CPU, CapturedParallelStepper uses no CUDA graph. The gradients form several buckets."""
    Path("script.py").write_text(CAPTURED, "utf-8")
    command = torchrun(2, *alone, "--out", "runs/together")
    command[command.index("-m", 3) : command.index("-m", 3) + 2] = ["script.py"]
    assert run(command) == (0, [])
    assert_same_losses(Path("runs/alone"), Path("runs/together"))


@contextmanager
def started(command: Sequence[str], out: Path, step: int) -> Iterator[subprocess.Popen[str]]:
    """Start a run, and wait until metrics.jsonl has this step. At the end, kill all processes."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline, file = time.monotonic() + 90, out / "metrics.jsonl"
        while not file.exists() or not metrics(out) or metrics(out)[-1]["step"] < step:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for rank in range(2):  # torchrun starts each process in its own session
            with suppress(AssertionError, ProcessLookupError):
                os.kill(find_process(rank), signal.SIGKILL)


def find_process(rank: int) -> int:
    """Return the ID of the process with this rank."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "environ").read_bytes().split(b"\0")
            here = os.readlink(directory / "cwd") == os.getcwd()
        except OSError:
            continue
        if f"RANK={rank}".encode() in words and here:
            return int(directory.name)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_run_continues_with_any_number_of_processes(alone: list[str]) -> None:
    """Two processes start the run and are interrupted; then three and one continue it."""
    out = Path("runs/resumed")
    with started(torchrun(2, *alone, "--out", out), out, 3) as process:
        os.kill(find_process(1), signal.SIGINT)  # the other process learns of it
        error = process.communicate(timeout=60)[1]
    (saved,) = map(int, re.findall(r"nanogpt: interrupted; saved at step (\d+); resume", error))
    tokens = json.loads((out / "last/training.json").read_text())["tokens"]
    assert tokens == saved * 24 * 16 >= 3 * 24 * 16
    flags, next_step = ["--sample-tokens", "0"], (saved + 24) // 2
    assert run(torchrun(3, "train", "--resume", out, "--train.steps", next_step, *flags)) == (0, [])
    command = [sys.executable, "-m", "nanogpt", "train", "--resume", str(out), *flags]
    assert run([*command, "--train.steps", "24"]) == (0, [])
    expected = {record["step"]: record for record in metrics(Path("runs/alone"))}
    assert len(metrics(out)) == len(expected)
    for record in metrics(out)[1:]:  # the first line has no loss
        assert record["train_loss"] == pytest.approx(
            expected[record["step"]]["train_loss"], abs=2e-6
        )
    assert metrics(out)[-1]["val_loss"] == pytest.approx(expected[24]["val_loss"], abs=2e-6)


SCRIPT = """
import os, sys
from nanogpt.cli.main import main
main(sys.argv[1:] + ["--seed", os.environ["RANK"]])
"""


MISTAKES = [
    pytest.param(
        ["--train.batch-size", "25", "--train.accumulation", "1"],
        "nanogpt: --train.batch-size is 25: 2 processes with --train.accumulation 1 need a "
        "multiple of 2; use --train.batch-size 24 or 26",
    ),
    pytest.param(
        ["--data", "-"],
        "nanogpt: 2 processes cannot read standard input: save its text as a file, and name this "
        "file",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ["--data", "http://127.0.0.1:1/a.txt", "--refresh"],
        "nanogpt: 2 processes cannot use --refresh: leave it out, and first run nanogpt data with "
        "it, without torchrun",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ["--precision", "float16"],
        "nanogpt: 2 processes cannot train in float16: use --precision bfloat16 or float32",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ["--data", "nope.txt"],
        "nanogpt: there is no file or corpus nope.txt: the corpora are tinyshakespeare, "
        "shakespeare, shakespeare-rest",
        marks=pytest.mark.slow,
    ),
]


TASKS = """
import os, sys
from nanogpt.cli.main import main
words = {"new": ["train", "tiny"], "resume": ["train", "--resume", "a"], "eval": ["eval", "a"]}
main(words[sys.argv[1 + int(os.environ["RANK"])]])
"""


@pytest.mark.parametrize("tasks", ["new resume", *map(slow, ["resume new", "eval resume"])])
def test_all_processes_must_have_the_same_task(tasks: str) -> None:
    first, second = tasks.split()
    does = {"new": "starts a new run", "resume": "resumes a run", "eval": "evaluates a run"}
    Path("tasks.py").write_text(TASKS, "utf-8")
    status, lines = run(torchrun(2, first, second, program=["tasks.py"]))
    line = f"nanogpt: process 0 {does[first]}, but process 1 {does[second]}: start all processes "
    assert (status != 0, lines) == (True, [line + "with the same command"])


EARLY = """
import os, sys, time
from nanogpt.cli.main import main
if os.environ["RANK"] == "1":
    time.sleep(4)
    sys.exit(3)
main(["train", "tiny", "--device", "cpu"])
"""


@pytest.mark.slow
def test_a_process_that_never_connects_ends_the_others_soon() -> None:
    Path("early.py").write_text(EARLY, "utf-8")
    start = time.monotonic()
    status, lines = run(torchrun(2, program=["early.py"]))
    assert (status != 0, lines) == (True, ["nanogpt: interrupted"])
    assert time.monotonic() - start < 25


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_is_reported_once(text_file: Path, change: list[str], message: str) -> None:
    command = torchrun(2, "train", *MUON, "--data", text_file, *change, "--out", "runs/wrong")
    status, lines = run(command)
    assert (status != 0, lines) == (True, [message])
    assert not Path("runs/wrong").exists()


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(text_file: Path) -> None:
    Path("script.py").write_text(SCRIPT, "utf-8")
    command = torchrun(2, "train", *MUON, "--data", text_file)
    command[command.index("-m", 3) : command.index("-m", 3) + 2] = ["script.py"]
    assert run(command)[1] == [
        "nanogpt: seed is 0 in process 0, but 1 in process 1: start all processes with the same "
        "command, text and version"
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_eval_has_the_loss_of_one_process(text: str) -> None:
    """With more processes than windows, one of them has none."""
    for flags in ([], ["--split", "all"], ["--data", "short.txt"]):
        Path("short.txt").write_text(text[:20], "utf-8")
        arguments = ["eval", "runs/alone", "runs/alone", "--json", "--device", "cpu", *flags]
        answers = []
        for command in ([sys.executable, "-m", "nanogpt", *arguments], torchrun(3, *arguments)):
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            answers.append(json.loads(output))
        losses = [answer.pop("loss") for answer in answers]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        bits = [answer.pop("bits_per_byte") for answer in answers]
        assert bits[1] == pytest.approx(bits[0], rel=1e-6)
        assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_mistake_of_eval_is_reported_once() -> None:
    status, lines = run(torchrun(2, "eval", "runs/missing"))
    assert status != 0
    assert lines == ["nanogpt: there is no run 'runs/missing'; the runs in runs/: none yet"]


@pytest.mark.slow
def test_other_commands_are_refused() -> None:
    assert run(torchrun(2, "presets"))[1] == [
        "nanogpt: torchrun can only start nanogpt train and eval: run nanogpt presets without it"
    ]


def test_all_processes_add_up_the_buckets_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """In compiled code, the gradients of a block can be computed in another order."""
    monkeypatch.setattr(parallel, "BUCKET_BYTES", 1)
    orders = []
    for order in ([2, 1, 0], [0, 1, 2], [1, 2, 0], [1]):
        weights = [nn.Parameter(torch.tensor([float(i)])) for i in range(3)]
        sums, started = parallel.GradientSums(weights), list[float]()
        assert sums.buckets == [[p] for p in reversed(weights)]
        monkeypatch.setattr(
            distributed,
            "start_adding",
            lambda tensors, started=started: started.append(tensors[0].item()) or (lambda: None),
        )
        sums.is_last = True
        for i in order:
            (weights[i] * (i + 1)).sum().backward()
        sums.finish(torch.tensor(0.0))
        orders.append(started)
    assert orders == [[3, 2, 1, 0]] * 3 + [[2, 0]]  # the loss, 0, comes last


@pytest.mark.parametrize("recompute", [False, True])
def test_the_progress_is_reported_for_each_block(
    config: RunConfig, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(replace(config, train=replace(config.train, recompute=recompute)))
    assert isinstance(run.model.config, GPTConfig)
    mean_loss, blocks = training.make_loss(run, print), run.model.config.n_layer
    tokens = torch.zeros(2, run.model.config.block_size, dtype=torch.long)
    parallel.report_blocks(run.model)
    points: list[None] = []
    monkeypatch.setattr(distributed, "report_progress", lambda: points.append(None))
    evaluate(run.model, run.data.splits["val"])
    assert len(points) == 0
    loss = mean_loss(tokens, tokens)
    assert len(points) == blocks
    loss.backward()
    assert len(points) == 2 * blocks


def test_only_gpus_report_the_blocks(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[nn.Module] = []
    monkeypatch.setattr(parallel, "report_blocks", reported.append)
    monkeypatch.setattr(distributed, "connect_gpus", lambda device: None)
    run = prepare_run(config)
    mean_loss = training.make_loss(run, print)
    parallel.ParallelStepper(run, mean_loss)
    assert reported == []
    parallel.ParallelStepper(replace(run, device=torch.device("cuda")), mean_loss)
    assert reported == [run.model]


def test_shares_of_the_matrices_together_are_all_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other processes, the parts that they would compute are collected one by one."""
    matrices = torch.randn(7, 6, 4)
    parts: list[torch.Tensor] = []

    def collect(part: torch.Tensor) -> torch.Tensor:
        parts.append(part)
        return part

    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "gather", collect)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share_orthogonalisation(matrices, torch.float32)
    expected = orthogonalise(matrices, torch.float32)
    torch.testing.assert_close(torch.cat(parts)[:7], expected)
