"""A configuration can be saved as JSON and read; a resumed run may change only some settings."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.models import KINDS, BigramConfig, GPTConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.system.schema import parse_dataclass


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_conversion_to_json_and_back(name: str) -> None:
    for config in (PRESETS[name].config, replace(PRESETS[name].config, out=Path("a/b"), seed=3)):
        assert parse_dataclass(RunConfig, config.to_json(), KINDS) == config


def test_a_resume_may_change_training_settings_the_place_of_the_text_and_the_device() -> None:
    saved = RunConfig()
    changes: list[dict[str, Any]] = [
        {"train": TrainConfig(steps=1, batch_size=2, compile=False)},
        {"optim": OptimConfig(lr=0.5, warmup=3, decay_steps=7, grad_clip=0.0)},
        {"data": "moved.txt"},
        {"device": "cpu", "precision": "float16", "deterministic": True},
    ]
    for change in changes:
        replace(saved, **change).check_same_run(saved)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 1}, "--seed is 1, but this run was started with 1337"),
        ({"name": "b"}, "--name is b"),
        ({"model": GPTConfig(n_layer=1)}, "--model.n-layer is 1, but this run was started with 6"),
        ({"model": BigramConfig()}, "--model.bias is None"),
        ({"optim": OptimConfig("adam")}, "--optim.optimizer is adam"),
        ({"optim": OptimConfig(ema=0.9)}, "--optim.ema is 0.9, but this run was started with 0.0"),
    ],
)
def test_a_resume_may_not_change_other_settings(change: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        replace(RunConfig(), **change).check_same_run(RunConfig())


def test_evaluations_are_at_multiples_of_eval_every_and_at_the_end() -> None:
    settings = TrainConfig(steps=25, eval_every=10)
    assert [step for step in range(26) if settings.evaluates_at(step)] == [0, 10, 20, 25]
    settings = replace(settings, eval_first=False)
    assert [step for step in range(26) if settings.evaluates_at(step)] == [10, 20, 25]


def test_a_bigram_has_nothing_for_muon() -> None:
    with pytest.raises(ValueError, match="optimizer is muon, but a bigram has no blocks"):
        RunConfig(model=BigramConfig(), optim=OptimConfig("muon"))


def test_values_of_a_related_type_are_converted() -> None:
    config = RunConfig(data=Path("a.txt"), out="runs/a", optim=OptimConfig(lr=1))  # type: ignore[arg-type]
    assert config == RunConfig(data="a.txt", out=Path("runs/a"), optim=OptimConfig(lr=1.0))
    assert isinstance(config.optim.lr, float)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"out": 3}, "out cannot be 3"),
        ({"seed": 1.5}, "seed cannot be 1.5"),
        ({"device": None}, "device cannot be None"),
        ({"precision": "int8"}, "precision cannot be 'int8'"),
        ({"deterministic": 1}, "deterministic cannot be 1"),
        ({"model": "tiny"}, "model cannot be 'tiny'"),
        ({"model": OptimConfig()}, "model cannot be OptimConfig("),
        ({"train": TrainConfig(steps=10.5)}, "steps cannot be 10.5"),  # type: ignore[arg-type]
        ({"optim": OptimConfig(lr=True)}, "lr cannot be True"),
    ],
)
def test_a_value_of_another_type_is_refused(settings: dict[str, Any], says: str) -> None:
    """Without this check, a run would fail later, and its error would not name the setting."""
    with pytest.raises(ValueError, match=re.escape(says)):
        RunConfig(**settings)
