"""The ladder study: its rungs, its files, its n-gram samples, and resuming it."""

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nanogpt.api import load
from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, build
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.reporter import Reporter
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
    sample_tokens,
)
from nanogpt.studies.trial import run_trial
from nanogpt.text.ngrams import NGramCounts

Command = Callable[..., tuple[int, str, str]]
TINY = LadderConfig(
    small=GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16),
    large=GPTConfig(n_layer=3, n_head=4, n_embd=32, block_size=16),
    dropout=0.1,
    optim=OptimConfig(lr=1e-2, warmup=5),
    muon=OptimConfig(optimizer="muon"),
    train=TrainConfig(steps=20, batch_size=8, eval_every=10, eval_first=False),
)
NAMES = [
    *(
        "unigram",
        "bigram",
        "trigram",
        "kneser-ney",
        "one-head",
        "many-heads",
        "feed-forward",
        "blocks",
    ),
    *("residuals", "layer-norm", "dropout", "gpt", "modern", "muon"),
]


@dataclass
class Study:
    """A small ladder that was interrupted after four trained rungs, and then resumed."""

    directory: Path
    base: RunConfig
    before: dict[str, int]
    """The modification time of each rung's result file at the interruption."""
    result: Ladder
    reported: list[Rung]
    """The rungs in the order in which the resumed study reported them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text: str) -> Study:
    directory = tmp_path_factory.mktemp("ladder")
    data = directory / "words.txt"
    data.write_text(text, encoding="utf-8", newline="\n")
    base = RunConfig(
        data=str(data),
        out=Path("runs/ladder"),
        device="cpu",
        train=TINY.train,
    )

    def interrupt(config: RunConfig, *rest: object) -> object:
        if config.name == "residuals":
            raise KeyboardInterrupt
        return run_trial(config, *rest)  # type: ignore[arg-type]

    with contextlib.chdir(directory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SAMPLE_WIDTH", 15)
            patch.setattr(module, "run_trial", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_tiny_ladder(base)
        before = get_times()
        result, reported = run_tiny_ladder(base)
    return Study(directory, base, before, result, reported)


@pytest.fixture
def study(finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of the finished study in the working directory."""
    monkeypatch.setattr(module, "SAMPLE_WIDTH", 15)
    shutil.copytree(finished.directory / "runs", tmp_path / "runs")
    return finished


def get_times() -> dict[str, int]:
    """Return the modification time of each rung's result file."""
    return {str(file): file.stat().st_mtime_ns for file in Path("runs").rglob("trial.json")}


def run_tiny_ladder(base: RunConfig) -> tuple[Ladder, list[Rung]]:
    """Run a small ladder; return its result and the reported rungs, in the order of the reports."""
    reported: list[Rung] = []
    return run_ladder(base, TINY, Reporter(), reported.append), reported


@pytest.mark.parametrize("config", [*LADDER_CONFIGS.values(), TINY])
def test_each_rung_changes_one_kind_of_setting(config: LadderConfig) -> None:
    rungs = [(asdict(model), asdict(optim)) for _, _, model, optim in plan_rungs(config)]
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
    assert different[4] == set()  # only the class changes, because a GPT always has layer norm
    assert different[5] == {"dropout"}
    assert different[6] <= {"n_layer", "n_embd", "n_head"}
    assert different[7] == {"n_head"}  # the class also changes, to ModernConfig
    assert "optimizer" in different[8]
    assert different[8] <= asdict(config.muon).keys()  # only optimizer settings change
    kinds = [type(build(model)).__name__ for _, _, model, _ in plan_rungs(config)]
    assert kinds == ["Plain"] * 5 + ["GPT"] * 3 + ["Modern"] * 2


@pytest.mark.slow
def test_files_hold_the_result(study: Study) -> None:
    ladder = study.result
    assert [rung.name for rung in ladder.rungs] == NAMES
    assert study.reported == ladder.rungs
    losses = {rung.name: rung.val_loss for rung in ladder.rungs}
    assert losses["unigram"] > losses["bigram"]
    for rung in ladder.rungs[4:]:
        description = json.loads(Path("runs/ladder", rung.name, "run.json").read_text("utf-8"))
        assert description["parameters"] == rung.parameters
        assert description["bigram_loss"] == pytest.approx(losses["bigram"], rel=1e-3)
        assert load(Path("runs/ladder", rung.name)).best.val_loss == rung.val_loss  # type: ignore[union-attr]
    assert json.loads(Path("runs/ladder/ladder.json").read_text("utf-8")) == asdict(ladder)
    table = Path("runs/ladder/ladder.md").read_text("utf-8")
    assert table == format_table(ladder)
    gains = re.findall(r"\| ([+-]\d\.\d{4}) \|", table)
    assert float(gains[0]) == pytest.approx(losses["unigram"] - losses["bigram"], abs=1e-4)
    assert len(gains) == len(NAMES) - 1
    svg = Path("runs/ladder/ladder.svg").read_text("utf-8")
    assert all(f">{name}<" in svg for name in NAMES)


@pytest.mark.slow
def test_finished_rungs_are_not_trained_again(study: Study) -> None:
    after = get_times()
    assert len(study.before) == 4
    assert study.before.items() < after.items()
    again, _ = run_tiny_ladder(study.base)
    assert [r.val_loss for r in again.rungs] == [r.val_loss for r in study.result.rungs]
    assert get_times() == after
    with pytest.raises(UserError, match="needs 3: name another directory with --out"):
        run_tiny_ladder(replace(study.base, seed=3))


@pytest.mark.slow
def test_the_advice_of_a_study_works(
    nanogpt: Command, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follow the advice in two errors.

    The first error is about a full disk (here, a file-size limit). The second error is about a seed
    that differs from the seed of the study.
    """
    resource = pytest.importorskip("resource")
    monkeypatch.setitem(LADDER_CONFIGS, "cpu", TINY)
    command = ["study", "ladder", "--data", str(text_file), "--device", "cpu"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        status, _, err = nanogpt(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    failed = r"gpt: cannot write in runs/ladder/gpt \(File too large\); finished models are saved"
    advised = re.fullmatch(rf"nanogpt: {failed}; resume with: nanogpt (.+)\n", err)
    assert (status, bool(advised)) == (1, True), err
    saved = get_times()
    assert nanogpt(*shlex.split(advised[1] if advised else ""))[0] == 0
    assert saved.items() < get_times().items()
    status, _, err = nanogpt(*command, "--seed", 7)
    assert (status, err.rpartition(": ")[2]) == (2, "name another directory with --out\n")
    assert nanogpt(*command, "--seed", 7, "--out", "other")[::2] == (0, "")


@pytest.mark.slow
def test_command_prints_a_row_per_rung_and_json(
    nanogpt: Command, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LADDER_CONFIGS, "cpu", TINY)
    flags = ("--data", study.base.data, "--device", "cpu")
    last = Path("runs/ladder/muon")
    shutil.rmtree(last)
    status, out, err = nanogpt("study", "ladder", *flags)
    assert (status, err) == (0, "")
    assert (last / "trial.json").exists()
    assert re.search(r"^rung +val loss +gain", out)
    assert all(re.search(rf"^{name} +\d", out, re.M) for name in NAMES)
    assert "saved in runs/ladder: ladder.json, ladder.md, ladder.svg" in out
    _, as_json, _ = nanogpt("study", "ladder", *flags, "--json")
    assert json.loads(as_json) == json.loads(Path("runs/ladder/ladder.json").read_text("utf-8"))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_samples_have_the_frequencies_of_the_counts(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 4000, True, generator=generator)
    counts = NGramCounts(train.numpy(), n, 3)
    sample = torch.tensor(sample_tokens(counts.count_followers, 0, 1500, generator))
    assert len(sample) == 1500
    shares = (torch.bincount(tokens, minlength=3) / len(tokens) for tokens in (sample, train))
    torch.testing.assert_close(*shares, atol=0.06, rtol=0)


def test_sample_follows_the_counted_bigrams() -> None:
    counts = NGramCounts(np.array([0, 1, 2] * 10**6), 2, 3)
    generator = torch.Generator().manual_seed(0)
    assert sample_tokens(counts.count_followers, 0, 9, generator) == [1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_find_longest_line() -> None:
    assert find_longest_line("a\n  bcd ef \ng") == "bcd ef"
    assert find_longest_line("") == ""
    assert len(find_longest_line("x" * 500)) == 60
