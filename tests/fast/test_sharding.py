"""Processes that each have some rows of every weight train the run of one process."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanogpt.errors import UserError
from nanogpt.runs.config import RunConfig
from nanogpt.runs.sharing import require_equal_shares
from tests.fast.test_lost_processes import LINE, OUT, SCRIPT, resume, seconds_since_loss
from tests.fast.test_parallel import (
    MUON,
    assert_same_losses,
    find_process,
    run,
    started,
    torchrun,
)
from tests.platforms import linux_only
from tests.same import metrics

GPT = [
    *("tiny", "--model.n-layer", "2", "--model.n-embd", "36", "--model.block-size", "16"),
    *("--train.steps", "24", "--train.eval-every", "8", "--train.log-every", "1"),
    *("--train.batch-size", "24", "--train.history", "3", "--device", "cpu"),
    *("--precision", "float32", "--sample-tokens", "0"),
]
CAUTIOUS = ["--optim.cautious-decay", "--train.steps", "3"]
CASES = [
    (2, MUON),
    pytest.param(2, GPT, marks=pytest.mark.slow),
    pytest.param(4, [*GPT, "--train.recompute"], marks=pytest.mark.slow),
    pytest.param(4, MUON, marks=pytest.mark.slow),
    # In longer runs, rounding decides which weights decay.
    pytest.param(2, [*MUON, *CAUTIOUS], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("processes", "flags"), CASES)
def test_the_losses_are_those_of_one_process(
    text_file: Path, processes: int, flags: list[str]
) -> None:
    """The weights, the optimizer states and the averages in the files agree, too."""
    arguments = ["train", *flags, "--data", str(text_file)]
    assert run([sys.executable, "-m", "nanogpt", *arguments, "--out", "runs/alone"]) == (0, [])
    command = torchrun(processes, *arguments, "--train.shard", "--out", "runs/together")
    assert run(command) == (0, [])
    one, other = Path("runs/alone"), Path("runs/together")
    assert_same_losses(one, other)
    for file in one.rglob("*.safetensors"):
        expected, found = load_file(file), load_file(other / file.relative_to(one))
        assert expected.keys() == found.keys()
        for name in expected.keys() - {"random.cpu"}:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@linux_only
@pytest.mark.slow
def test_a_run_continues_with_any_number_of_processes(text_file: Path) -> None:
    """Two processes with parts of the weights start the run; then three, one and two continue."""
    arguments = ["train", *MUON, "--data", str(text_file)]
    assert run([sys.executable, "-m", "nanogpt", *arguments, "--out", "runs/alone"]) == (0, [])
    out, quiet = Path("runs/resumed"), ["--sample-tokens", "0"]
    with started(torchrun(2, *arguments, "--train.shard", "--out", out), out, 3) as process:
        os.kill(find_process(1), signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    (saved,) = map(int, re.findall(r"nanogpt: interrupted; saved at step (\d+)", error))
    assert json.loads((out / "last/training.json").read_text())["config"]["train"]["shard"]
    command = ["train", "--resume", out, *quiet, "--train.steps"]
    first, second = ((saved * (3 - part) + 24 * part) // 3 for part in (1, 2))
    assert run(torchrun(3, *command, first)) == (0, [])
    assert run([sys.executable, "-m", "nanogpt", *map(str, command), str(second)]) == (0, [])
    assert run(torchrun(2, *command, 24, "--train.no-shard")) == (0, [])
    expected = {record["step"]: record for record in metrics(Path("runs/alone"))}
    for record in metrics(out)[1:]:
        assert record["train_loss"] == pytest.approx(
            expected[record["step"]]["train_loss"], abs=2e-6
        )
    assert metrics(out)[-1]["val_loss"] == pytest.approx(expected[24]["val_loss"], abs=2e-6)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "how", "rank"),
    [
        ("step", "SIGKILL", 0),
        ("step", "hang", 1),
        ("block", "hang without timeout", 1),
        ("evaluation", "SIGSTOP", 1),
        ("checkpoint", "SIGKILL", 1),
    ],
)
def test_a_lost_process_ends_all(text_file: Path, place: str, how: str, rank: int) -> None:
    Path("script.py").write_text(SCRIPT, "utf-8")
    arguments = ["train", *MUON, "--data", text_file, "--out", OUT, "--train.shard"]
    script = ["script.py", place, how, str(rank)]
    status, lines = run(torchrun(2, *arguments, program=script))
    assert status != 0
    assert seconds_since_loss() < 60
    assert lines == [LINE]
    resume()


@linux_only
@pytest.mark.slow
def test_a_slow_checkpoint_of_the_first_process_ends_nothing(text_file: Path) -> None:
    """The others wait for it, although they need its weights for the evaluation."""
    Path("script.py").write_text(SCRIPT, "utf-8")
    arguments = ["train", *MUON, "--data", text_file, "--out", OUT, "--train.shard"]
    script = ["script.py", "checkpoint", "slow", "0"]
    assert run(torchrun(2, *arguments, program=script)) == (0, [])


def test_the_average_of_divided_weights_is_no_teacher(config: RunConfig) -> None:
    settings = replace(config.train, shard=True, mean_teacher=0.5)
    config = replace(config, optim=replace(config.optim, ema=0.9), train=settings)
    message = "mean_teacher is 0.5, but shard divides the averaged weights between the processes: "
    with pytest.raises(UserError, match=message):
        require_equal_shares(config, torch.device("cpu"), torch.float32, 2)
