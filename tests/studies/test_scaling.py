"""The scaling study: its texts, its grid, and resuming after an interruption."""

import json
import math
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nanogpt.errors import Interrupted
from nanogpt.models import ModernConfig, build
from nanogpt.runs.config import RunConfig
from nanogpt.studies import scaling as module
from nanogpt.studies.findings import analyse_trials, format_tables
from nanogpt.studies.scaling import (
    PARTS,
    SHAPES,
    Grid,
    Recipe,
    load_texts,
    plan_runs,
    run_scaling,
    select_part,
)
from nanogpt.studies.trial import Trial, read_finished_trial
from nanogpt.text import corpora

Command = Callable[..., tuple[int, str, str]]
RUNS = 9
# `rate` (the third value) has no effect on small models, so `strong` and `same` give the same run.
# The last two values are a range of block parameters / characters × epochs. If a model is in the
# ranges of both `strong` and `same`, only the run of `strong` is planned.
TRIED = {
    "free": Recipe(0.0, 0.3, 1.0, 0.0, 0.7),
    "strong": Recipe(0.3, 0.6, 1.0, 0.1, math.inf),
    "same": Recipe(0.3, 0.6, 0.5, 0.0, math.inf),
}
SMALL = Grid(((1, 1, 8), (2, 1, 16), (2, 2, 32)), (1, 2), TRIED, 12, 4, 16)


@pytest.fixture
def base(text: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The settings of a study on a small text."""
    passages = [text[i : i + 100] for i in range(0, 5000, 100)]
    monkeypatch.setattr(module, "load_texts", lambda: (passages, text[5000:]))
    monkeypatch.setattr(module, "analyse_trials", partial(analyse_trials, bootstraps=5))
    return RunConfig(out=Path("runs/scaling"), device="cpu", precision="float32")


def test_sizes_range_from_10_thousand_to_30_million() -> None:
    sizes = [
        sum(p.numel() for p in build(ModernConfig(L, H, C, 256)).parameters()) for L, H, C in SHAPES
    ]
    assert len(sizes) >= 6
    assert sizes == sorted(sizes)
    assert 9e3 < sizes[0] < 1.1e4
    assert 2.5e7 < sizes[-1] < 3.5e7


def test_training_text_is_tiny_shakespeare_and_the_other_plays() -> None:
    passages, val = load_texts()
    tiny = corpora.load_corpus("tinyshakespeare")
    assert val == "".join(tiny.read_split("val"))
    text, train = "".join(passages), "".join(tiny.read_split("train"))
    assert text.startswith(train)
    assert len(text) > len(train) + 3_500_000
    assert set(text) <= set(tiny.text())
    rest = corpora.load_corpus("shakespeare-rest").text()
    alphabet, counts = set(tiny.text()), Counter(rest)
    assert Counter(text) == Counter(train) + Counter(
        {c: counts[c] for c in counts.keys() & alphabet}
    )
    assert all(len(passage) >= module.MIN_PASSAGE for passage in sorted(passages, key=len)[1:])
    assert sum(passage.endswith("\n\n") for passage in passages) >= len(passages) - 1
    assert val[:2000] not in text


def test_part_is_spread_over_the_whole_text_and_lies_within_a_larger_part() -> None:
    passages = [f"{i:04}\n" for i in range(1000)]
    assert select_part(passages, 1) == "".join(passages)
    halves, quarter = (select_part(passages, part).splitlines() for part in (2, 4))
    assert (len(halves), len(quarter)) == (500, 250)
    assert set(quarter) < set(halves)
    assert quarter == sorted(quarter)
    for hundred in range(10):
        assert 30 < sum(int(line) // 100 == hundred for line in halves) < 70


def test_all_runs_have_the_same_validation_text(base: RunConfig, text: str) -> None:
    (Path("runs/scaling")).mkdir(parents=True)
    runs = plan_runs(base, SMALL)
    # 12 steps of 64 characters are 0.15 epochs of 5,000 characters, or 0.3 epochs of 2,500.
    # The comments below give block parameters / characters × epochs, as in the ranges of TRIED.
    assert sorted(run.name for run in runs) == [
        "1x8-1-of-1-free",  # 0.02
        "1x8-1-of-1-same",
        "1x8-1-of-2-free",  # 0.09
        "1x8-1-of-2-same",
        "2x16-1-of-1-free",  # 0.19
        "2x16-1-of-1-strong",
        "2x16-1-of-2-strong",  # 0.75
        "2x32-1-of-1-strong",  # 0.75
        "2x32-1-of-2-strong",  # 3.0
    ]
    assert len(runs) == RUNS
    for run in runs:
        recipe = TRIED[run.name.split("-of-")[1][2:]]
        assert run.optim.weight_decay == recipe.weight_decay
        assert run.optim.muon_lr == 0.02
        assert isinstance(run.model, ModernConfig)
        assert run.model.dropout == recipe.dropout
        corpus = corpora.load_corpus(run.data)
        assert "".join(corpus.read_split("val", run.val_fraction)) == text[5000:]
        part = int(run.name.split("-of-")[1][0])
        assert len("".join(corpus.read_split("train", run.val_fraction))) == 5000 // part
    sizes = [run.model.n_embd for run in runs if isinstance(run.model, ModernConfig)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_grid_has_a_recipe_for_each_cell(tmp_path: Path) -> None:
    runs = plan_runs(RunConfig(out=tmp_path, device="cpu"), Grid())
    cells = Counter(run.name.rsplit("-", 1)[0] for run in runs)
    assert len(cells) == len(SHAPES) * len(PARTS)
    assert len(runs) == 47
    rates = {run.name: run.optim.muon_lr for run in runs}
    assert rates["5x96-1-of-1-free"] == rates["7x288-1-of-4-medium"] == 0.02
    assert rates["6x168-1-of-1-free"] == rates["9x512-1-of-1-free"] == 0.01
    assert {run.name[:5] for run in runs if module._needs_whole_gpu(run)} == {"9x512"}
    for run in runs:
        assert isinstance(run.model, ModernConfig)
        assert (run.model.dropout == 0) == run.name.endswith("free")


@pytest.mark.slow
def test_interrupted_study_resumes(base: RunConfig) -> None:
    def interrupt(run: RunConfig, trial: Trial, done: int, total: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    error = r"saved the running models; runs left: \d; resume with: nanogpt study scaling"
    with pytest.raises(Interrupted, match=error) as raised:
        run_scaling(base, SMALL, 2, interrupt, print)
    assert raised.value.status == 128 + signal.SIGTERM
    finished = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("trial.json")}
    assert 2 <= len(finished) < RUNS

    reported: list[tuple[str, int, int]] = []

    def report(run: RunConfig, trial: Trial, done: int, total: int) -> None:
        reported.append((run.name, done, total))

    result = run_scaling(base, SMALL, 2, report, print)
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
    assert [done for _, done, _ in reported] == list(range(1, RUNS + 1))
    assert {total for *_, total in reported} == {RUNS}
    assert len({name for name, *_ in reported}) == RUNS
    assert [(cell.n_embd, cell.D) for cell in result.cells] == [
        (8, 2500),
        (8, 5000),
        (16, 2500),
        (16, 5000),
        (32, 2500),
        (32, 5000),
    ]
    assert not list(Path("runs").rglob("*.safetensors"))
    assert json.loads(Path("runs/scaling/scaling.json").read_text("utf-8"))["cells"][0]["D"] == 2500
    assert Path("runs/scaling/scaling.md").read_text("utf-8") == format_tables(result)
    for picture in ("fit", "residuals", "frontier"):
        assert "loss" in Path(f"runs/scaling/{picture}.svg").read_text("utf-8")
    best = min(
        read_finished_trial(run).val_loss  # type: ignore[union-attr]
        for run in plan_runs(base, SMALL)
        if "2x32-1-of-1-" in run.name
    )
    assert result.cells[-1].loss == best
