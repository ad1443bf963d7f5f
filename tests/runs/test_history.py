"""The snapshots of a run: their steps, their weights, and what a resumed run does with them."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.api import load
from nanogpt.optim import OptimConfig
from nanogpt.runs.checkpoint import Best, load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.history import list_snapshots, plan_snapshots, snapshot_directory
from nanogpt.runs.journal import Record
from nanogpt.runs.reporter import Reporter
from nanogpt.runs.run import read_run_config
from nanogpt.train import resume_training, train
from tests.same import assert_same, metrics
from tests.small import SMALL


@given(st.integers(1, 10_000), st.integers(0, 200))
def test_snapshots_are_planned_from_the_first_step_to_the_last(steps: int, count: int) -> None:
    planned = plan_snapshots(steps, count)
    assert len(planned) == min(count, steps + 1)
    assert list(planned) == sorted(set(planned))
    assert planned[:2] == (0, 1)[:count]
    if count > 2:
        assert planned[-1] == steps
    if len(planned) > 2:
        even = math.log(steps) / (len(planned) - 2)
        gaps = [math.log(b / a) for a, b in pairwise(planned[1:])]
        assert max(gaps) <= max(even, math.log(2)) + math.log(1.5)  # 1.5 allows for rounding


def test_the_logarithms_of_the_steps_are_about_evenly_spaced() -> None:
    assert plan_snapshots(5000, 12) == (0, 1, 2, 5, 12, 28, 66, 157, 373, 886, 2105, 5000)
    assert plan_snapshots(3, 10) == (0, 1, 2, 3)


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    return RunConfig(
        data=str(text_file),
        device="cpu",
        model=SMALL,
        optim=OptimConfig(lr=1e-2, warmup=2),
        train=TrainConfig(steps=20, batch_size=4, eval_every=10, log_every=5, history=6),
    )


class Failing(Reporter):
    """Ends the run after it records `step` in metrics.jsonl, without saving another checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


def test_a_snapshot_has_the_weights_of_a_run_that_ends_there(config: RunConfig) -> None:
    train(replace(config, out=Path("run")))
    steps = list_snapshots(Path("run"))
    assert steps == list(plan_snapshots(20, 6))
    optim = replace(config.optim, decay_steps=20)
    for step in steps[1:]:
        settings = replace(config.train, steps=step, history=0)
        out = Path(f"until-{step}")
        train(replace(config, out=out, optim=optim, train=settings))
        snapshot = load_checkpoint(snapshot_directory(Path("run"), step))
        assert snapshot.step == step
        weights = load_checkpoint(out / "last").model.state_dict()
        for name, tensor in snapshot.model.state_dict().items():
            assert torch.equal(tensor, weights[name]), (step, name)


def test_snapshots_change_nothing_else(config: RunConfig) -> None:
    train(replace(config, out=Path("with")))
    train(replace(config, out=Path("without"), train=replace(config.train, history=0)))
    assert metrics(Path("with")) == metrics(Path("without"))
    assert not Path("without/history").exists()


def test_a_snapshot_generates_text(config: RunConfig) -> None:
    train(replace(config, out=Path("run")))
    trained = load(snapshot_directory(Path("run"), 20))
    assert trained.step == 20
    assert len(trained.generate(max_new_tokens=5)) == 5


def test_a_resumed_run_makes_the_same_snapshots(config: RunConfig) -> None:
    train(replace(config, out=Path("straight")))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=Path("stopped")), Failing(15))
    later = snapshot_directory(Path("stopped"), 999)
    shutil.copytree(snapshot_directory(Path("stopped"), 1), later)  # as if made after last/
    resume_training(Path("stopped"), read_run_config(Path("stopped")))
    assert not later.exists()
    assert_same(Path("straight"), Path("stopped"))
    steps = list_snapshots(Path("straight"))
    assert list_snapshots(Path("stopped")) == steps
    for step in steps:
        one, other = (
            load_checkpoint(snapshot_directory(Path(run), step)).model.state_dict()
            for run in ("straight", "stopped")
        )
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_gradient_norm_of_the_last_step_is_recorded(config: RunConfig) -> None:
    optim = replace(config.optim, grad_clip=0.0)
    result = train(replace(config, out=Path("run"), optim=optim))
    lines = metrics(Path("run"))
    assert "gradient_norm" not in lines[0]
    assert all(line["gradient_norm"] > 0 for line in lines[1:])
    assert lines[-1]["gradient_norm"] == result.run.state.gradient_norm
