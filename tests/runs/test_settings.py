"""`nanogpt train --config FILE` reads the settings of a run, and --print-config prints them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.models import KINDS
from nanogpt.runs.config import RunConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.settings import apply_settings
from nanogpt.system.schema import parse_dataclass

Command = Callable[..., tuple[int, str, str]]


def print_config(nanogpt: Command, *arguments: object) -> RunConfig:
    status, out, err = nanogpt("train", *arguments, "--device", "cpu", "--print-config")
    assert (status, err) == (0, "")
    assert not Path("runs").exists()
    return parse_dataclass(RunConfig, json.loads(out), KINDS)


@pytest.mark.parametrize("name", PRESETS)
def test_printed_settings_give_the_same_settings(nanogpt: Command, name: str) -> None:
    """Here, the default preset is that of a CPU, whose model has another kind than some presets."""
    config = print_config(nanogpt, name)
    Path("mine.json").write_text(json.dumps(config.to_json()), "utf-8")
    assert print_config(nanogpt, "--config", "mine.json") == config


def test_the_settings_of_a_run(nanogpt: Command, run: Path) -> None:
    """The directory is that of a new run, and the tokenizer gives the size of the vocabulary."""
    expected: dict[str, Any] = json.loads((run / "run.json").read_bytes())["config"]
    found = print_config(nanogpt, "tiny-fast", "--config", run / "run.json").to_json()
    assert found.pop("out") is None
    del expected["out"]
    size = PRESETS["tiny"].config.model.vocab_size
    assert (expected["model"].pop("vocab_size"), found["model"].pop("vocab_size")) == (12, size)
    assert found == expected


def test_flags_override_a_part_of_the_settings(nanogpt: Command, text_file: Path) -> None:
    part = {"train": {"steps": 6, "eval_every": 3}, "seed": 5, "model": {"n_layer": 1}}
    Path("mine.json").write_text(json.dumps(part), "utf-8")
    flags = ["--train.batch-size", 2, "--seed", 7]
    config = print_config(nanogpt, "tiny", "--config", "mine.json", *flags)
    assert (config.train.steps, config.train.batch_size, config.seed) == (6, 2, 7)
    assert (config.model.block_size, config.to_json()["model"]["n_layer"]) == (64, 1)
    command = ["train", "tiny", "--config", "mine.json", "--data", text_file, "--device", "cpu"]
    assert nanogpt(*command, "--sample-tokens", "0", *flags)[::2] == (0, "")
    saved = json.loads(Path("runs/tiny/run.json").read_bytes())["config"]
    assert (saved["train"]["steps"], saved["seed"]) == (6, 7)
    status, _, err = nanogpt("train", "--resume", "--config", "mine.json")
    assert (status, err) == (
        2,
        "nanogpt: --config has no effect: a run is resumed with its own settings; leave the option "
        "out\n",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"train": {"stepz": 1}}', "train: unknown key 'stepz'"),
        ('{"train": 5}', "train cannot be 5"),
        (
            '{"model": {"kind": "llama"}}',
            "model: its kind must be one of gpt, modern, plain, bigram",
        ),
        ('{"seed": "x"}', "seed cannot be 'x'"),
        (
            '{"train": {"steps": -1}}',
            "train: steps is -1: it must be at least 1",
        ),
        ('{"optim": []}', "optim cannot be []"),
    ],
)
def test_invalid_settings(content: str, problem: str, nanogpt: Command) -> None:
    Path("mine.json").write_text(content, "utf-8")
    status, out, err = nanogpt("train", "tiny", "--config", "mine.json")
    assert (status, out) == (2, "")
    assert err.startswith(f"nanogpt: mine.json has no valid settings ({problem}")
    assert err.endswith(
        '): use a run.json, or some of its settings, as in {"train": {"steps": 100}}\n'
    )


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{", '{"config": 1}', '{"format": 99, "config": {}}']
)
def test_a_file_that_has_no_settings(content: str | None, nanogpt: Command) -> None:
    if content is not None:
        Path("mine.json").write_text(content, "utf-8")
    status, out, err = nanogpt("train", "tiny", "--config", "mine.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("nanogpt: mine.json ")
    assert "train again" not in err


def test_a_model_of_another_kind_has_its_own_defaults() -> None:
    Path("mine.json").write_text('{"model": {"kind": "bigram"}}', "utf-8")
    config = apply_settings(PRESETS["tiny"].config, Path("mine.json"))
    assert config.model == KINDS["bigram"]()
