"""Many trials at once, each in its own process."""

import json
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanogpt.errors import Stopped, UserError
from nanogpt.models import GPTConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.directory import lock_run
from nanogpt.studies import processes
from nanogpt.studies.processes import run_all
from nanogpt.studies.trial import Trial, run_trial
from tests.platforms import posix_only


@pytest.fixture
def run(text_file: Path) -> RunConfig:
    """A run that takes about a second."""
    return RunConfig(
        name="one",
        out=Path("one"),
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16),
        train=TrainConfig(steps=20, batch_size=4, eval_every=10),
    )


def never(run: RunConfig) -> bool:
    """Return False, because no run needs a whole device."""
    return False


def named(run: RunConfig, name: str, seed: int = 0) -> RunConfig:
    return replace(run, name=name, out=Path(name), seed=seed)


@pytest.mark.slow
def test_results_equal_those_of_single_runs(run: RunConfig) -> None:
    runs = [named(run, f"seed{i}", seed=i) for i in range(3)]
    reported: list[tuple[str, int]] = []

    def report(run: RunConfig, trial: Trial, done: int) -> None:
        reported.append((run.name, done))

    trials = run_all(runs, 2, never, "", report, print)
    assert [done for _, done in reported] == [1, 2, 3]
    assert {name for name, _ in reported} == {run.name for run in runs}
    for config, trial in zip(runs, trials, strict=True):
        assert trial.config == config
        single = run_trial(named(config, f"{config.name}-again", config.seed), "")
        assert trial.val_loss == pytest.approx(single.val_loss, rel=1e-5)
    assert not list(Path().glob("seed?/**/*.safetensors"))
    reported.clear()
    (Path("seed1") / "last").mkdir()  # as if the process was killed before removing last/
    assert run_all(runs, 2, never, "", report, print) == trials
    assert reported == [("seed0", 1), ("seed1", 2), ("seed2", 3)]
    assert not (Path("seed1") / "last").exists()


@pytest.mark.slow
def test_user_error_of_a_process_is_raised(run: RunConfig) -> None:
    nowhere = replace(named(run, "two"), data="nowhere.txt")
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        run_all([run, nowhere], 2, never, "", lambda *_: None, print)
    assert not multiprocessing.active_children()


@posix_only
@pytest.mark.slow
def test_killed_process_resumes_twice(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count_cores", lambda: 1)  # other tests use the other cores
    long = replace(run, train=replace(run.train, steps=4000, eval_every=100))
    saves, messages = iter((0, 100, 200)), []

    def kill(step: int) -> None:
        """Kill the process of the run after step `step` or a later step has been saved."""
        config, killed, deadline = Path("one/last/config.json"), False, time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            time.sleep(0.05)
            if config.exists() and json.loads(config.read_text())["step"] >= step:
                for process in multiprocessing.active_children():  # it may not have started yet
                    process.kill()
                    killed = True

    def kill_again(message: str) -> None:
        messages.append(message)
        threading.Thread(target=kill, args=(next(saves),)).start()

    threading.Thread(target=kill, args=(next(saves),)).start()
    error = r"^one was killed \(exit code -9\) 3 times, .* --at-a-time 1$"
    with pytest.raises(Stopped, match=error):
        run_all([long], 1, never, "", lambda *_: None, kill_again)
    expected = "one was killed (exit code -9); it resumes from its last checkpoint."
    assert messages == 2 * [expected]
    metrics = Path("one/metrics.jsonl")
    lines = metrics.read_text().splitlines(keepends=True)
    before = [line for line in lines if json.loads(line)["step"] < 200]
    run_all([long], 1, never, "", lambda *_: None, pytest.fail)  # as the error advises
    after = metrics.read_text().splitlines(keepends=True)
    assert after[: len(before)] == before  # even `seconds` is equal, so the run was resumed
    assert json.loads(after[-1])["step"] == 4000


@pytest.mark.slow
def test_worker_saves_a_checkpoint_when_it_is_asked_to_stop(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent sends no signal, because on Windows a signal ends a process at once."""
    monkeypatch.setattr(processes, "signal", SimpleNamespace())  # as on Windows
    long = replace(run, train=replace(run.train, steps=1_000_000, eval_every=100_000))
    worker = processes._Worker(long, "cpu", 1, 1, ())
    while not Path("one/best").exists():
        assert worker.process.is_alive()
        time.sleep(0.05)
    time.sleep(0.2)
    worker.stop()
    worker.process.join(timeout=60)
    assert worker.process.exitcode == 0
    assert json.loads(Path("one/last/config.json").read_text())["step"] > 0
    worker.stop()  # a second stop() raises no error


def raise_a_value_error(*_: object) -> None:
    raise ValueError("a bug")


def work_with_a_cuda_error(*args: Any) -> None:
    def run_trial(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nand some advice")

    vars(processes)["run_trial"] = run_trial
    WORK(*args)


WORK = processes._work


@pytest.mark.slow
def test_unexpected_exception_stops_the_study(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_work", raise_a_value_error)
    # Stop the fork server, because only a new server writes to the standard error of this test.
    if sys.platform == "linux":
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    with pytest.raises(Stopped, match=r"^one failed: see the traceback above$"):
        run_all([run], 1, never, "", lambda *_: None, pytest.fail)
    assert "ValueError: a bug" in capfd.readouterr().err


@pytest.mark.slow
def test_process_with_a_cuda_error_resumes_twice(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_work", work_with_a_cuda_error)
    messages: list[str] = []
    with pytest.raises(Stopped, match=r"^one had a CUDA error: unspecified launch failure 3 t"):
        run_all([run], 1, never, "", lambda *_: None, messages.append)
    error = "one had a CUDA error: unspecified launch failure"
    assert messages == 2 * [f"{error}; it resumes from its last checkpoint."]


@pytest.mark.slow
def test_processes_end_when_the_study_is_killed(run: RunConfig) -> None:
    long = replace(run, train=replace(run.train, steps=1_000_000, eval_every=100))
    spawn = multiprocessing.get_context("spawn")
    study = spawn.Process(target=run_all, args=([long], 1, never, "", print, print))
    study.start()
    while not Path("one/last").exists():
        assert study.is_alive()
        time.sleep(0.05)
    with pytest.raises(UserError, match="is training in one"):
        lock_run(Path("one"))
    study.kill()
    study.join()
    deadline = time.monotonic() + 60
    while True:
        try:
            lock_run(Path("one")).release()
            break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


Started = list[tuple[str, str, int, list[str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """For each started run: its name, device and number of threads, and the runs in progress."""
    started: Started = []
    running: list[str] = []

    class Worker:
        """A worker that finishes as soon as run_all() waits for it."""

        def __init__(
            self, run: RunConfig, device: str, slots: int, threads: int, unneeded: object
        ) -> None:
            started.append((run.name, device, threads, [*running]))
            running.append(run.name)
            self.run, self.device, self.slots = run, device, slots
            sentinel, end = os.pipe()
            os.close(end)
            self.process = SimpleNamespace(sentinel=sentinel)

        def result(self) -> Trial:
            os.close(self.process.sentinel)
            running.remove(self.run.name)
            return Trial(self.run, "", 1.0, 1.0, 1, 1, 1, 1.0, "", [])

    monkeypatch.setattr(processes, "_Worker", Worker)
    monkeypatch.setattr(processes, "count_cores", lambda: 12)
    return started


@posix_only
def test_large_run_has_the_device_to_itself(run: RunConfig, started: Started) -> None:
    runs = [named(run, name) for name in ("first", "large", "third", "fourth")]
    run_all(runs, 2, lambda run: run.name == "large", "", lambda *_: None, print)
    assert started == [
        ("first", "cpu", 6, []),
        ("large", "cpu", 12, []),
        ("third", "cpu", 6, []),
        ("fourth", "cpu", 6, ["third"]),
    ]


@posix_only
def test_runs_are_spread_over_the_gpus(
    run: RunConfig,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    runs = [replace(named(run, name), device="cuda") for name in "Aabcd"]
    run_all(runs, 3, lambda run: run.name == "A", "", lambda *_: None, print)
    assert started == [
        ("A", "cuda:0", 6, []),
        ("a", "cuda:1", 2, ["A"]),
        ("b", "cuda:1", 2, ["A", "a"]),
        ("c", "cuda:1", 2, ["A", "a", "b"]),
        ("d", "cuda:0", 2, []),
    ]
    started.clear()
    runs = [replace(named(run, name), device="cuda:1") for name in "ab"]
    run_all(runs, 3, never, "", lambda *_: None, print)
    assert [device for _, device, *_ in started] == ["cuda:1", "cuda:1"]
