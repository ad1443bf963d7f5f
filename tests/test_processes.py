"""Runs side by side, each in a process of its own."""

import json
import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import RunConfig, TrainConfig
from nanogpt.errors import Stopped, UserError
from nanogpt.models import GPTConfig
from nanogpt.studies import processes
from nanogpt.studies.processes import run_all
from nanogpt.studies.trial import trial


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
        by_itself = trial(named(one, f"{one.name}-again", one.seed), "")
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
    with pytest.raises(Stopped, match=r"of one was killed three times, .*: the same command"):
        run_all([long], 1, never, "", lambda *_: None, said)
    assert says == 2 * ["one was killed (exit code -9), and goes on."]


def test_one_that_wants_to_be_alone_is(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [named(run, name) for name in ("first", "alone", "last")]
    beside: dict[str, list[str]] = {}

    class Watched(processes._Worker):
        """Notes what goes on when it begins."""

        def __init__(self, run: RunConfig, *rest: Any) -> None:
            beside[run.name] = [p.name for p in multiprocessing.active_children()]
            super().__init__(run, *rest)
            self.process.name = run.name

    monkeypatch.setattr(processes, "_Worker", Watched)
    run_all(runs, 2, lambda run: run.name == "alone", "", lambda *_: None, print)
    assert beside == {"first": [], "alone": [], "last": []}
    run_all([named(run, "1"), named(run, "2")], 2, never, "", lambda *_: None, print)
    assert beside["2"] == ["1"]
