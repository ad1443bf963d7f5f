"""An option that has no effect is refused; harmless combinations of options are accepted."""

from pathlib import Path

import pytest

from nanogpt.cli import train
from nanogpt.cli.arguments import parse_arguments, parse_with_defaults
from nanogpt.cli.sample import SampleArgs
from nanogpt.runs.presets import PRESETS

from .answers import Command, assert_refused


@pytest.fixture
def texts() -> None:
    """Create files and directories with texts, JSONL rows and tokens."""
    for name in ("one.txt", "one.JSONL", "few/a.txt", "few/b.txt", "rows/a.txt", "rows/b.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"text": "a"}')
    Path("tokens").mkdir()
    for split in ("train", "val"):
        Path("tokens", f"{split}.bin").write_bytes(b"ab")


PLAIN = ["tinyshakespeare", "-", "one.txt", "tokens", "http://127.0.0.1:9/a.txt?x=a.jsonl"]
"""Texts that are a single document."""
ROWS = ["one.JSONL", "rows", "ro*/*", "hf:a/b", "http://127.0.0.1:9/a.JSONL#sha256=00"]
"""Texts with columns."""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("train --optim.muon-lr 0.1", "the optimizer is adamw"),
        ("train --optim.muon_lr=0.02", "the optimizer is adamw"),
        ("train --optim.optimizer adam --optim.momentum 0.9", "the optimizer is adam"),
        ("explain tiny --optim.weight-decay 1 --optim.optimizer adam", "the optimizer is adam"),
        ("train baby --optim.cooldown 0.5", "the schedule is cosine"),
        ("train best --optim.schedule cosine --optim.cooldown 1", "the schedule is cosine"),
        ("train baby --train.shard", "there is a single process"),
        ("explain baby --train.shard", "there is a single process"),
        ("train bigram --train.recompute", "a bigram has no blocks"),
        ("train --data tokens --val-fraction 0.5", "tokens has a file for each split"),
        *((f"train --data {data} --column x", f"{data} has no columns") for data in PLAIN),
        *((f"data {data} --separator |", f"{data} is a single document") for data in PLAIN),
        ("eval --data few --column x", "few has no columns"),
        ("eval --column x", "it belongs to --data, which is missing"),
        ("eval --separator x --split val", "it belongs to --data, which is missing"),
        ("explain --column x", "tinyshakespeare has no columns"),
        ("tokenize abc --tokenizer byte --data one.txt", "the tokenizer byte is not trained on"),
        ("tokenize abc --data one.txt --tokenizer runs/tiny", "the tokenizer runs/tiny is not tra"),
        ("tokenize abc --tokenizer byte --column x", "the tokenizer byte is not trained on --data"),
        ("tokenize abc --column x", "tinyshakespeare has no columns"),
        ("study ladder --separator |", "tinyshakespeare is a single document"),
        ("study ladder --data few --column x", "few has no columns"),
        ("data one.txt --refresh", "one.txt is not downloaded"),
        ("train --refresh", "tinyshakespeare is not downloaded"),
        ("eval --refresh", "it belongs to --data, which is missing"),
    ],
)
def test_an_option_without_effect_is_refused(
    nanogpt: Command, texts: None, arguments: str, reason: str
) -> None:
    answer = nanogpt(*arguments.split())
    assert_refused(answer, f" has no effect: {reason}")
    flag = answer[2].split()[1]
    assert flag in arguments.replace("_", "-")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *([preset] for preset in PRESETS),
        ["--optim.optimizer", "muon", "--optim.muon-lr", "0.1", "--optim.weight-decay", "0.1"],
        ["best", "--optim.cooldown", "0.5", "--optim.momentum", "0.9"],
        ["--optim.weight-decay", "0", "--train.no-compile", "--deterministic", "--seed", "1"],
        *(["--data", data, "--column", "x", "--separator", "|"] for data in ROWS),
        ["--data", "few", "--separator", "|"],
        ["--data", "http://127.0.0.1:9/a.txt", "--refresh"],
    ],
)
def test_an_option_with_an_effect_is_accepted(texts: None, arguments: list[str]) -> None:
    choose = train._Defaults().choose
    parse_with_defaults(train.TrainArgs, choose, ["--device", "cpu", *arguments], "nanogpt train")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--temperature", "0", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.1", "--seed", "1"],
        ["--prompt=--column", "--samples", "2", "--json", "--no-cuda-graph", "--device", "cpu"],
        ["--interactive", "--seed", "1", "--samples", "2"],
    ],
)
def test_harmless_combinations_of_sample_options_are_accepted(arguments: list[str]) -> None:
    parse_arguments(SampleArgs(), arguments, "nanogpt sample")
