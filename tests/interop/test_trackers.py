"""The trackers receive the lines of metrics.jsonl, a sample and a picture, also after a resume."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.interop import extras, trackers
from tests.same import metrics

Command = Callable[..., tuple[int, str, str]]
COMMAND = ["train", "tiny", "--out", "mine", "--optim.decay-steps", "20", "--train.log-every", "5"]


@pytest.fixture
def train(small: list[str], text_file: Path) -> Callable[..., tuple[int, str, str]]:
    """A function that trains 10 steps, or resumes the run to 20 steps, in a new process.

    The trackers keep their state until the end of a process.
    """

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        command = [*COMMAND, "--data", text_file, *small, "--train.steps", 10]
        if arguments:
            command = ["train", "--resume", "mine", "--sample-tokens", 20, *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "nanogpt", *map(str, command), "--track", name],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                **{"TRACKIO_DIR": str(Path("trackio").absolute()), "WANDB_API_KEY": ""},
                "HF_HUB_OFFLINE": "1",
            },
        )
        return done.returncode, done.stdout, done.stderr

    return run


def is_usual(output: str) -> bool:
    """Return whether the tracker has printed nothing among the lines of nanogpt."""
    starts = "mine: ", "bigram ", "step ", "best ", "bits ", "smoothed ", "training ", "saved in "
    lines = output.partition("\nSample:")[0].splitlines()
    return all(line.startswith(starts) or "training tokens" in line or not line for line in lines)


def expected(name: str) -> list[tuple[float, float]]:
    """Return the steps and values of a field in metrics.jsonl."""
    return [(record["step"], record[name]) for record in metrics(Path("mine")) if name in record]


@pytest.mark.slow
def test_tensorboard(train: Callable[..., tuple[int, str, str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status, out, err = train("tensorboard")
    assert (status, err) == (0, "")
    assert is_usual(out)
    assert train("tensorboard", "--train.steps", 20)[::2] == (0, "")
    events = EventAccumulator("mine/tensorboard")
    events.Reload()
    for field, name in (("train_loss", "train/loss"), ("val_loss", "val/loss")):
        found = {int(event.step): float(event.value) for event in events.Scalars(name)}
        assert found == pytest.approx(dict(expected(field)), rel=1e-6)
    assert events.Tags()["images"] == ["loss"]
    assert set(events.Tags()["tensors"]) == {"settings/text_summary", "sample/text_summary"}
    text = events.Tensors("sample/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert len(text) == len("```\n\n```") + 20


@pytest.mark.slow
def test_trackio(train: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = train("trackio")
    assert (status, err) == (0, "")
    assert is_usual(out)
    assert train("trackio", "--train.steps", 20)[::2] == (0, "")
    database = sqlite3.connect("trackio/nanogpt.db")
    rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    assert {name for name, _, _ in rows} == {"mine"}
    values = [(step, json.loads(content)) for _, step, content in rows]
    losses = {step: each["val/loss"] for step, each in values if "val/loss" in each}
    assert losses == dict(expected("val_loss"))
    assert [each["loss"]["_type"] for _, each in values if "loss" in each] == 2 * ["trackio.image"]


@pytest.mark.slow
def test_wandb(train: Callable[..., tuple[int, str, str]]) -> None:
    """Without an account, wandb writes files, with which `wandb sync` can fill its page later."""
    status, out, err = train("wandb")
    assert (status, err) == (0, "")
    assert is_usual(out)
    assert train("wandb", "--train.steps", 20)[::2] == (0, "")
    runs = [path.name for path in Path("mine/wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len({name.rpartition("-")[2] for name in runs}) == 1  # one run, in two parts
    assert len(list(Path("mine/wandb").rglob("loss_*.png"))) == 2
    assert len(list(Path("mine/wandb").rglob("sample_*.table.json"))) == 2


def test_a_tracker_that_fails_leaves_the_run_alone(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    Path("mine").mkdir()
    Path("mine/.pid").write_text("1\n", "ascii")  # left by an earlier run that was killed

    class Broken:
        def __init__(self, *_: Any) -> None:
            pass

        def log(self, step: int, values: dict[str, float]) -> None:
            raise ConnectionError("no\nserver")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.TRACKERS, "tensorboard", Broken)
        status, out, err = nanogpt(*COMMAND, "--data", text_file, *small, "--track", "tensorboard")
    assert (status, err) == (0, "")
    line = "tensorboard failed (no server): the run continues without it\n"
    assert out.count("tensorboard") == 1
    assert line in out
    assert metrics(Path("mine"))[-1]["step"] == 20


def test_a_tracker_that_hangs_does_not_delay_the_end(
    nanogpt: Command, small: list[str], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Slow:
        def __init__(self, *_: Any) -> None:
            threading.Event().wait()

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Slow)
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    status, out, err = nanogpt(*COMMAND, "--data", text_file, *small, "--track", "tensorboard")
    assert (status, err) == (0, "")
    assert out.endswith("\ntensorboard does not answer, and may lack the end of this run\n")


def test_a_missing_library(nanogpt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    assert nanogpt("train", "tiny", "--track", "wandb", "--track", "tensorboard") == (
        2,
        "",
        "nanogpt: --track wandb needs the library wandb: install it with `pip install wandb`\n",
    )
    assert not Path("runs").exists()
