"""The ladder: every rung adds one thing, and what is done is not done again."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from nanogpt.api import load
from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, build
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.studies import ladder as module
from nanogpt.studies.ladder import (
    LADDER_CONFIGS,
    Ladder,
    LadderConfig,
    Rung,
    find_longest_line,
    format_table,
    plan_rungs,
    run_ladder,
)
from nanogpt.studies.trial import run_trial
from nanogpt.train import Reporter

Command = Callable[..., tuple[int, str, str]]
TINY = LadderConfig(
    small=GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16),
    whole=GPTConfig(n_layer=3, n_head=4, n_embd=32, block_size=16),
    dropout=0.1,
    optim=OptimConfig(lr=1e-2, warmup=5),
    muon=OptimConfig(optimizer="muon"),
    train=TrainConfig(steps=20, batch_size=8, eval_every=10, eval_first=False),
)
NAMES = [
    *("unigram", "bigram", "trigram", "one-head", "many-heads", "feed-forward", "blocks"),
    *("residuals", "layer-norm", "dropout", "gpt", "modern", "muon"),
]


@pytest.fixture
def base(text_file: Path) -> RunConfig:
    data, out = str(text_file), Path("runs/ladder")
    return RunConfig(data=data, out=out, device="cpu", precision="float32", train=TINY.train)


def climb(base: RunConfig) -> tuple[Ladder, list[Rung]]:
    told: list[Rung] = []
    return run_ladder(base, TINY, Reporter(), told.append), told


@pytest.mark.parametrize("size", [*LADDER_CONFIGS.values(), TINY])
def test_every_rung_adds_one_thing(size: LadderConfig) -> None:
    rungs = [(asdict(model), asdict(optim)) for _, _, model, optim in plan_rungs(size)]
    different = [
        {
            key
            for before, now in zip(one, other, strict=True)
            for key in before.keys() & now.keys()
            if now[key] != before[key]
        }
        for one, other in pairwise(rungs)
    ]
    assert different[0] == {"n_head"}
    assert different[1] == {"feed_forward"}
    assert different[2] == {"n_layer"}
    assert different[3] == {"residual"}
    assert different[4] == set()  # no key of PlainConfig any more: with norms
    assert different[5] == {"dropout"}
    assert different[6] <= {"n_layer", "n_embd", "n_head"}
    assert different[7] == {"n_head"}  # and the kind of model
    assert "optimizer" in different[8]
    assert different[8] <= asdict(size.muon).keys()  # the model is the same
    kinds = [type(build(model)).__name__ for _, _, model, _ in plan_rungs(size)]
    assert kinds == ["Plain"] * 5 + ["GPT"] * 3 + ["Modern"] * 2


def test_it_climbs_and_writes_what_it_found(base: RunConfig) -> None:
    ladder, told = climb(base)
    assert [rung.name for rung in ladder.rungs] == NAMES
    assert told == ladder.rungs
    losses = {rung.name: rung.val_loss for rung in ladder.rungs}
    assert losses["unigram"] > losses["bigram"]
    for rung in ladder.rungs[3:]:
        description = json.loads(Path("runs/ladder", rung.name, "run.json").read_text())
        assert description["parameters"] == rung.parameters
        assert description["bigram_loss"] == pytest.approx(losses["bigram"], rel=1e-3)
        assert load(Path("runs/ladder", rung.name)).best.val_loss == rung.val_loss  # type: ignore[union-attr]
    assert json.loads(Path("runs/ladder/ladder.json").read_text()) == asdict(ladder)
    written = Path("runs/ladder/ladder.md").read_text()
    assert written == format_table(ladder)
    gains = re.findall(r"\| ([+-]\d\.\d{4}) \|", written)
    assert float(gains[0]) == pytest.approx(losses["unigram"] - losses["bigram"], abs=1e-4)
    assert len(gains) == len(NAMES) - 1
    drawn = Path("runs/ladder/ladder.svg").read_text()
    assert all(f">{name}<" in drawn for name in NAMES)


def test_what_is_done_is_not_done_again(base: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def once(config: RunConfig, *rest: object) -> object:
        if config.name == "residuals" and "blocks" in done and "again" not in done:
            done.append("again")
            raise KeyboardInterrupt
        done.append(config.name)
        return real(config, *rest)  # type: ignore[arg-type]

    real = run_trial
    monkeypatch.setattr(module, "run_trial", once)
    with pytest.raises(KeyboardInterrupt):
        climb(base)
    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("trial.json")}
    assert len(before) == 4
    first, _ = climb(base)
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    second, _ = climb(base)
    assert [r.val_loss for r in second.rungs] == [r.val_loss for r in first.rungs]
    with pytest.raises(UserError, match="asks for 3: name another directory"):
        climb(replace(base, seed=3))


def test_the_command(nanogpt: Command, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LADDER_CONFIGS, "cpu", TINY)
    flags = ("--data", text_file, "--device", "cpu")
    status, out, err = nanogpt("study", "ladder", *flags)
    assert (status, err) == (0, "")
    assert re.search(r"^rung +val loss +gain", out)
    assert all(re.search(rf"^{name} +\d", out, re.M) for name in NAMES)
    assert "kept in runs/ladder: ladder.json, ladder.md, ladder.svg" in out
    _, as_json, _ = nanogpt("study", "ladder", *flags, "--json")
    assert json.loads(as_json) == json.loads(Path("runs/ladder/ladder.json").read_text())


def test_the_line_shown_is_the_longest() -> None:
    assert find_longest_line("a\n  bcd ef \ng") == "bcd ef"
    assert find_longest_line("") == ""
    assert len(find_longest_line("x" * 500)) == 60
