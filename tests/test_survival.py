"""A run that was ended by a signal, a kill or a full disk can be resumed exactly."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nanogpt.runs.checkpoint import load_checkpoint
from tests.marks import slow
from tests.platforms import linux_only
from tests.same import assert_same

resource = pytest.importorskip("resource")  # Windows lacks this module, SIGKILL and SIGHUP

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def arguments(text_file: Path, out: str, steps: int, eval_every: int = 10) -> list[object]:
    """Return arguments for a run. With the default `eval_every`, it saves checkpoints often."""
    return [
        *("train", "tiny", "--data", text_file, "--out", out, "--device", "cpu"),
        *("--sample-tokens", 20),
        *("--model.n-layer", 1, "--model.n-head", 2, "--model.n-embd", 32),
        *("--model.block-size", 16, "--model.dropout", 0.1, "--train.log-every", 3),
        *("--train.steps", steps, "--train.eval-every", eval_every, "--optim.warmup", 20),
    ]


def get_step(run: Path) -> int:
    """Return the last step in metrics.jsonl, or -1 if there is no step."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError):
        return -1


def wait_for(condition: Callable[[], bool], training: subprocess.Popen[str]) -> None:
    while training.poll() is None and not condition():
        time.sleep(0.002)


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM])
def test_a_signal_saves_the_run_and_says_how_to_resume_it(
    process: Process, nanogpt: Command, text_file: Path, number: signal.Signals
) -> None:
    with process(*arguments(text_file, "mine", 100_000, 100_000)) as training:
        wait_for(lambda: get_step(Path("mine")) > 10, training)
        training.send_signal(number)
        _, err = training.communicate(timeout=60)
        assert training.returncode == 128 + number
    step = load_checkpoint("mine/last").step
    assert step > 10
    says = f"interrupted; saved at step {step:,}; resume with: nanogpt train --resume mine"
    assert err == f"\nnanogpt: {says}\n"
    status, out, err = nanogpt(
        "train", "--resume", "mine", "--train.steps", step + 5, "--sample-tokens", 5
    )
    assert (status, err) == (0, "")
    assert f"resuming from step {step:,}" in out
    assert load_checkpoint("mine/last").step == step + 5


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(process: Process, text_file: Path) -> None:
    endless = [*arguments(text_file, "mine", 100_000, 100_000), "--train.batch-size", 200_000]
    # A step takes many seconds; between its parts, Python notices a signal.
    with process(*endless, "--train.accumulation", 1000) as training:
        wait_for(lambda: get_step(Path("mine")) >= 0, training)
        training.send_signal(signal.SIGINT)
        time.sleep(1)
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=60)
        assert training.returncode == 130
        assert err == "\nnanogpt: interrupted\n"
    assert load_checkpoint("mine/last").step == 0


def is_writing(run: Path) -> bool:
    """Whether a checkpoint is being written, or was being written when the process died."""
    return any((run / name).exists() for name in (".last.new", ".best.new"))


def kill_and_resume(process: Process, text_file: Path, kills: int, steps: int, seed: int) -> int:
    """Kill a run at random moments; return how many kills interrupted a checkpoint."""
    draw, out = random.Random(seed), Path("killed")
    interrupted, command = 0, arguments(text_file, "killed", steps)
    for kill in range(kills):
        with process(*command) as training:
            goal = get_step(out) + draw.randint(1, steps // (kills + 1))
            wait_for(lambda goal=goal: get_step(out) >= goal, training)  # type: ignore[misc]
            if kill % 2:
                wait_for(lambda: is_writing(out), training)
            else:
                time.sleep(draw.uniform(0, 0.01))
            training.kill()
            _, err = training.communicate()
            assert training.returncode == -signal.SIGKILL, err
        interrupted += is_writing(out)
        for checkpoint in ("last", "best"):  # a kill never leaves an incomplete checkpoint
            if (out / "run.json").exists() and (out / checkpoint).exists():
                load_checkpoint(out / checkpoint)
        if (out / "run.json").exists():
            command = ["train", "--resume", "killed"]
    with process(*command) as training:
        _, err = training.communicate()
        assert (training.returncode, err) == (0, "")
    return interrupted


@pytest.mark.slow
def test_a_run_that_is_killed_twice_is_resumed_exactly(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    assert nanogpt(*arguments(text_file, "straight", 200))[0] == 0
    kill_and_resume(process, text_file, kills=2, steps=200, seed=0)
    assert_same(Path("straight"), Path("killed"))


@pytest.mark.slow
def test_a_run_that_is_killed_25_times_is_resumed_exactly(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    assert nanogpt(*arguments(text_file, "straight", 1500))[0] == 0
    interrupted = kill_and_resume(process, text_file, kills=25, steps=1500, seed=1)
    assert interrupted >= 5
    assert_same(Path("straight"), Path("killed"))


@pytest.mark.slow
def test_two_processes_cannot_train_in_one_directory(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    with process(*arguments(text_file, "mine", 100_000, 100_000)) as training:
        wait_for(lambda: get_step(Path("mine")) > 0, training)
        status, _, err = nanogpt("train", "--resume", "mine")
        assert status == 2
        assert err.startswith(f"nanogpt: process {training.pid} is training in mine: wait for it")
        training.kill()
        training.wait()
    step = load_checkpoint("mine/last").step
    assert (
        nanogpt("train", "--resume", "mine", "--train.steps", step + 5, "--sample-tokens", 5)[0]
        == 0
    )


def assert_stopped_by_full_disk(answer: tuple[int, str, str], run: Path, reason: str) -> None:
    """Assert that a command ended with a one-line error and status 1, and left the run intact."""
    status, _, err = answer
    assert status == 1
    assert err == (
        f"nanogpt: cannot write in {run} ({reason}): free disk space, then resume with: "
        f"nanogpt train --resume {run}\n"
    )
    assert load_checkpoint(run / "last").step >= 20
    assert load_checkpoint(run / "best").step >= 20
    assert not list(run.glob(".*.new"))


@pytest.mark.parametrize("limit", [slow(0), slow(200), 20_000, slow(100_000)])
def test_a_file_size_limit_stops_the_run_with_one_line(
    nanogpt: Command, text_file: Path, limit: int
) -> None:
    """For each limit, a different file of the run is the first one that exceeds the limit."""
    schedule = ("--optim.decay-steps", 40)
    assert nanogpt(*arguments(text_file, "straight", 40), *schedule)[0] == 0
    assert nanogpt(*arguments(text_file, "full", 20), *schedule)[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        answer = nanogpt("train", "--resume", "full", "--train.steps", 40, "--sample-tokens", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_stopped_by_full_disk(answer, Path("full"), "File too large")
    assert nanogpt("train", "--resume", "full", "--train.steps", 40, "--sample-tokens", 5)[0] == 0
    assert_same(Path("straight"), Path("full"))


@pytest.mark.parametrize("limit", [slow(200), 20_000])
def test_a_run_that_saved_nothing_can_be_started_again(
    nanogpt: Command, text_file: Path, limit: int
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        status, _, err = nanogpt(*arguments(text_file, "full", 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    says = "cannot write in full (File too large): free disk space, then start again"
    assert (status, err) == (1, f"nanogpt: {says}\n")
    assert nanogpt(*arguments(text_file, "full", 20))[::2] == (0, "")


@linux_only
@pytest.mark.slow
def test_the_command_of_the_error_resumes_a_run_after_a_full_disk(
    process: Process, nanogpt: Command, text_file: Path
) -> None:
    assert nanogpt(*arguments(text_file, "straight", 600))[0] == 0
    with process(*arguments(text_file, "full", 600)) as training:
        wait_for(lambda: get_step(Path("full")) > 20, training)
        resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        _, err = training.communicate(timeout=60)
    assert_stopped_by_full_disk((training.returncode, "", err), Path("full"), "File too large")
    assert nanogpt(*err.split("resume with: nanogpt ")[1].split())[0] == 0
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


@pytest.mark.parametrize("free_kilobytes", [slow(0), 64, slow(180)])
def test_a_full_disk_stops_the_run_with_one_line(
    nanogpt: Command, text_file: Path, tiny_disk: Path, free_kilobytes: int
) -> None:
    schedule = ("--optim.decay-steps", 60)
    assert nanogpt(*arguments(text_file, "straight", 60), *schedule)[0] == 0
    run = tiny_disk / "full"
    assert nanogpt(*arguments(text_file, str(run), 20), *schedule)[0] == 0
    filler, left = tiny_disk / "filler", shutil.disk_usage(tiny_disk).free
    filler.write_bytes(bytes(left - free_kilobytes * 1024))
    answer = nanogpt("train", "--resume", run, "--train.steps", 60, "--sample-tokens", 5)
    assert_stopped_by_full_disk(answer, run, "No space left on device")
    filler.unlink()
    assert nanogpt("train", "--resume", run, "--train.steps", 60, "--sample-tokens", 5)[0] == 0
    assert_same(Path("straight"), run)


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGHUP), slow(signal.SIGINT)])
@pytest.mark.parametrize("command", ["data -", slow("train --data -")])
def test_a_signal_while_text_is_read_leaves_no_file(
    cache: Path, number: signal.Signals, command: str
) -> None:
    """The file of an earlier process that was killed is also removed."""
    for sent in (signal.SIGKILL, number):
        with subprocess.Popen(
            [sys.executable, "-m", "nanogpt", *command.split()],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as reading:
            before = {*cache.glob(".new-*/new")}
            wait_for(lambda before=before: {*cache.glob(".new-*/new")} - before, reading)  # type: ignore
            reading.send_signal(sent)
            try:
                reading.wait(20)
            except subprocess.TimeoutExpired:  # the signal came before Python waited for input
                reading.send_signal(sent)
            assert reading.stderr is not None
            err = reading.stderr.read()
        assert reading.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
        assert err == ("" if sent == signal.SIGKILL else "\nnanogpt: interrupted\n")
        assert bool([*cache.iterdir()]) == (sent == signal.SIGKILL)
