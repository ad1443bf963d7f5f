"""Runs side by side, each in a process of its own."""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
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


@pytest.fixture
def run(text_file: Path) -> RunConfig:
    """A small one."""
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
    """No run wants to be alone."""
    return False


def named(run: RunConfig, name: str, seed: int = 0) -> RunConfig:
    return replace(run, name=name, out=Path(name), seed=seed)


def test_each_is_what_it_would_be_by_itself(run: RunConfig) -> None:
    runs, told = [named(run, f"seed{i}", seed=i) for i in range(3)], []
    found = run_all(runs, 2, never, "", lambda run, came, n: told.append((run.name, n)), print)
    assert [n for _, n in told] == [1, 2, 3]
    assert {name for name, _ in told} == {run.name for run in runs}
    for one, came in zip(runs, found, strict=True):
        assert came.config == one
        by_itself = run_trial(named(one, f"{one.name}-again", one.seed), "")
        assert came.val_loss == pytest.approx(by_itself.val_loss, rel=1e-5)
    assert not list(Path().glob("seed?/**/*.safetensors"))
    told.clear()
    (Path("seed1") / "last").mkdir()  # as a process leaves it that is killed at its end
    assert (
        run_all(runs, 2, never, "", lambda run, came, n: told.append((run.name, n)), print) == found
    )
    assert told == [("seed0", 1), ("seed1", 2), ("seed2", 3)]
    assert not (Path("seed1") / "last").exists()


def test_the_mistake_in_one_is_ours_to_tell(run: RunConfig) -> None:
    nowhere = replace(named(run, "two"), data="nowhere.txt")
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        run_all([run, nowhere], 2, never, "", lambda *_: None, print)
    assert not multiprocessing.active_children()


def test_one_that_is_killed_goes_on_twice(run: RunConfig) -> None:
    long = replace(run, train=replace(run.train, steps=1_000_000, eval_every=100))
    saves, says = iter((0, 100, 200)), []

    def kill(step: int) -> None:
        """Kill the process of the one run as soon as it has saved this step or a later one."""
        saved = Path("one/last/config.json")
        while not saved.exists() or json.loads(saved.read_text())["step"] < step:
            time.sleep(0.05)
        (process,) = multiprocessing.active_children()
        process.kill()

    def said(line: str) -> None:
        says.append(line)
        threading.Thread(target=kill, args=(next(saves),)).start()

    threading.Thread(target=kill, args=(next(saves),)).start()
    says_so = r"^one was killed \(exit code -9\) three times, .* --at-a-time 1$"
    with pytest.raises(Stopped, match=says_so):
        run_all([long], 1, never, "", lambda *_: None, said)
    assert says == 2 * ["one was killed (exit code -9), and goes on."]


def ends_by_a_mistake(*_: object) -> None:
    raise ValueError("of ours")


def has_a_cuda_error(*args: Any) -> None:
    def run_trial(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nand what may help")

    vars(processes)["run_trial"] = run_trial
    MAKE(*args)


MAKE = processes._work


def test_a_mistake_of_ours_is_not_tried_again(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_work", ends_by_a_mistake)
    with pytest.raises(Stopped, match=r"^one failed, as is said above$"):
        run_all([run], 1, never, "", lambda *_: None, pytest.fail)
    assert "ValueError: of ours" in capfd.readouterr().err


def test_a_cuda_error_is(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_work", has_a_cuda_error)
    says: list[str] = []
    with pytest.raises(Stopped, match=r"^one had a CUDA error: unspecified launch failure three"):
        run_all([run], 1, never, "", lambda *_: None, says.append)
    assert says == 2 * ["one had a CUDA error: unspecified launch failure, and goes on."]


def test_none_outlives_a_study_that_is_killed(run: RunConfig) -> None:
    long = replace(run, train=replace(run.train, steps=1_000_000, eval_every=100))
    spawn = multiprocessing.get_context("spawn")
    study = spawn.Process(target=run_all, args=([long], 1, never, "", print, print))
    study.start()
    while not Path("one/last").exists():
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


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int, list[str]]]:
    """Which runs begin: name, device, threads, and which others are not done then."""
    found: list[tuple[str, str, int, list[str]]] = []
    working: list[str] = []

    class Worker:
        """Is done as soon as somebody waits for it."""

        def __init__(self, run: RunConfig, device: str, places: int, threads: int) -> None:
            found.append((run.name, device, threads, [*working]))
            working.append(run.name)
            self.run, self.device, self.places = run, device, places
            sentinel, end = os.pipe()
            os.close(end)
            self.process = SimpleNamespace(sentinel=sentinel)

        def result(self) -> Trial:
            os.close(self.process.sentinel)
            working.remove(self.run.name)
            return Trial(self.run, "", 1.0, 1.0, 1, 1, 1, 1.0, "", [])

    monkeypatch.setattr(processes, "_Worker", Worker)
    monkeypatch.setattr(processes, "count_cores", lambda: 12)
    return found


def test_one_that_wants_to_be_alone_is(
    run: RunConfig, begun: list[tuple[str, str, int, list[str]]]
) -> None:
    runs = [named(run, name) for name in ("first", "alone", "third", "fourth")]
    run_all(runs, 2, lambda run: run.name == "alone", "", lambda *_: None, print)
    assert begun == [
        ("first", "cpu", 6, []),
        ("alone", "cpu", 12, []),
        ("third", "cpu", 6, []),
        ("fourth", "cpu", 6, ["third"]),
    ]


def test_runs_spread_over_gpus(
    run: RunConfig,
    begun: list[tuple[str, str, int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    runs = [replace(named(run, name), device="cuda") for name in "Aabcd"]
    run_all(runs, 3, lambda run: run.name == "A", "", lambda *_: None, print)
    assert begun == [
        ("A", "cuda:0", 6, []),
        ("a", "cuda:1", 2, ["A"]),
        ("b", "cuda:1", 2, ["A", "a"]),
        ("c", "cuda:1", 2, ["A", "a", "b"]),
        ("d", "cuda:0", 2, []),
    ]
    begun.clear()
    runs = [replace(named(run, name), device="cuda:1") for name in "ab"]
    run_all(runs, 3, never, "", lambda *_: None, print)
    assert [device for _, device, *_ in begun] == ["cuda:1", "cuda:1"]
