"""Whatever ends a run, a signal, a kill, a full disk, it goes on as if nothing had happened."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nanogpt.runs.checkpoint import load_checkpoint
from tests.same import assert_same

resource = pytest.importorskip("resource")  # not on Windows, which has no signals either

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def flags(text_file: Path, out: str, steps: int, every: int = 10) -> list[object]:
    """A run whose checkpoints take about as long as its steps."""
    return [
        *("train", "tiny", "--data", text_file, "--out", out, "--device", "cpu"),
        *("--model.n-layer", 1, "--model.n-head", 2, "--model.n-embd", 32),
        *("--model.block-size", 16, "--model.dropout", 0.1, "--train.log-every", 3),
        *("--train.steps", steps, "--train.eval-every", every, "--optim.warmup", 20),
    ]


def step_of(run: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError):
        return -1


def wait_for(condition: Callable[[], bool], training: subprocess.Popen[str]) -> None:
    while training.poll() is None and not condition():
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    process: Process, nanogpt: Command, text_file: Path, number: signal.Signals
) -> None:
    with process(*flags(text_file, "mine", 100_000, 100_000)) as training:
        wait_for(lambda: step_of(Path("mine")) > 10, training)
        training.send_signal(number)
        _, err = training.communicate(timeout=60)
        assert training.returncode == 128 + number
    step = load_checkpoint("mine/last").step
    assert step > 10
    says = f"interrupted; saved at step {step:,}; resume with: nanogpt train --resume mine"
    assert err == f"\nnanogpt: {says}\n"
    status, out, err = nanogpt("train", "--resume", "mine", "--train.steps", step + 5)
    assert (status, err) == (0, "")
    assert f"going on from step {step:,}" in out
    assert load_checkpoint("mine/last").step == step + 5


def test_a_second_signal_leaves_at_once(process: Process, text_file: Path) -> None:
    endless = [*flags(text_file, "mine", 100_000, 100_000), "--train.batch-size", 20_000]
    with process(*endless) as training:  # a step takes many seconds
        wait_for(lambda: step_of(Path("mine")) >= 0, training)
        training.send_signal(signal.SIGINT)
        time.sleep(0.2)
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=60)
        assert training.returncode == 130
        assert err == "\nnanogpt: interrupted\n"
    assert load_checkpoint("mine/last").step == 0


def is_writing(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when the process was killed."""
    return any((run / name).exists() for name in (".last.new", ".best.new"))


def kill_and_go_on(process: Process, text_file: Path, kills: int, steps: int, seed: int) -> int:
    """Kill a run at random moments, half of them while it writes; gives how many of those."""
    draw, out = random.Random(seed), Path("killed")
    writing, arguments = 0, flags(text_file, "killed", steps)
    for kill in range(kills):
        with process(*arguments) as training:
            aim = step_of(out) + draw.randint(1, steps // (kills + 1))
            wait_for(lambda aim=aim: step_of(out) >= aim, training)  # type: ignore[misc]
            if kill % 2:
                wait_for(lambda: is_writing(out), training)
            time.sleep(draw.uniform(0, 0.01))
            training.kill()
            _, err = training.communicate()
            assert training.returncode == -signal.SIGKILL, err
        writing += is_writing(out)
        for checkpoint in ("last", "best"):  # whole at every instant
            if (out / "run.json").exists() and (out / checkpoint).exists():
                load_checkpoint(out / checkpoint)
        if (out / "run.json").exists():
            arguments = ["train", "--resume", "killed"]
    with process(*arguments) as training:
        _, err = training.communicate()
        assert (training.returncode, err) == (0, "")
    return writing


def test_killed_twice_it_is_the_same_run(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    assert nanogpt(*flags(text_file, "straight", 200))[0] == 0
    kill_and_go_on(process, text_file, kills=2, steps=200, seed=0)
    assert_same(Path("straight"), Path("killed"))


@pytest.mark.slow
def test_killed_25_times_it_is_the_same_run(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    assert nanogpt(*flags(text_file, "straight", 1500))[0] == 0
    writing = kill_and_go_on(process, text_file, kills=25, steps=1500, seed=1)
    assert writing >= 5  # some of the kills fell into the writing of a checkpoint
    assert_same(Path("straight"), Path("killed"))


def test_two_processes_do_not_train_in_one_directory(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    with process(*flags(text_file, "mine", 100_000, 100_000)) as training:
        wait_for(lambda: step_of(Path("mine")) > 0, training)
        status, _, err = nanogpt("train", "--resume", "mine")
        assert status == 2
        assert err.startswith(f"nanogpt: process {training.pid} is training in mine: wait for it")
        training.kill()
        training.wait()
    step = load_checkpoint("mine/last").step
    assert nanogpt("train", "--resume", "mine", "--train.steps", step + 5)[0] == 0


# A disk that is full.


def stopped_by_a_full_disk(answer: tuple[int, str, str], run: Path, reason: str) -> None:
    """One line, status 1, and nothing lost."""
    status, _, err = answer
    assert status == 1
    assert err == (
        f"nanogpt: cannot write in {run} ({reason}): make room, then resume with: "
        f"nanogpt train --resume {run}\n"
    )
    assert load_checkpoint(run / "last").step >= 20
    assert load_checkpoint(run / "best").step >= 20
    assert not list(run.glob(".*.new"))


@pytest.mark.parametrize("limit", [0, 200, 20_000, 100_000])
def test_a_file_that_grows_too_large_is_one_line(
    nanogpt: Command, text_file: Path, limit: int
) -> None:
    """By the system's limit on the size of a file: each time another file is the first."""
    schedule = ("--optim.decay-steps", 40)
    assert nanogpt(*flags(text_file, "straight", 40), *schedule)[0] == 0
    assert nanogpt(*flags(text_file, "full", 20), *schedule)[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        answer = nanogpt("train", "--resume", "full", "--train.steps", 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    stopped_by_a_full_disk(answer, Path("full"), "File too large")
    assert nanogpt("train", "--resume", "full", "--train.steps", 40)[0] == 0
    assert_same(Path("straight"), Path("full"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("room", [0, 64, 180])
def test_a_full_disk_is_one_line(
    nanogpt: Command, text_file: Path, tiny_disk: Path, room: int
) -> None:
    schedule = ("--optim.decay-steps", 60)
    assert nanogpt(*flags(text_file, "straight", 60), *schedule)[0] == 0
    run = tiny_disk / "full"
    assert nanogpt(*flags(text_file, str(run), 20), *schedule)[0] == 0
    ballast, left = tiny_disk / "ballast", shutil.disk_usage(tiny_disk).free
    ballast.write_bytes(bytes(left - room * 1024))
    answer = nanogpt("train", "--resume", run, "--train.steps", 60)
    stopped_by_a_full_disk(answer, run, "No space left on device")
    ballast.unlink()
    assert nanogpt("train", "--resume", run, "--train.steps", 60)[0] == 0
    assert_same(Path("straight"), run)


# On a GPU.
