"""The study of scaling: its grid, its processes, and what it concludes."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt import corpora
from nanogpt.config import RunConfig, TrainConfig
from nanogpt.errors import Interrupted, Stopped
from nanogpt.models import ModernConfig, build
from nanogpt.studies import scaling as module
from nanogpt.studies.law import Law
from nanogpt.studies.scaling import (
    PARTS,
    SHAPES,
    Cell,
    Grid,
    cells,
    conclude,
    drawn,
    frontier,
    growth,
    plan,
    study,
    tables,
    texts,
)
from nanogpt.studies.trial import Point, Trial, finished

Command = Callable[..., tuple[int, str, str]]
RUNS = 9
TRIED = {0.0: (0.0, 4.0), 0.3: (0.25, math.inf)}
SMALL = Grid(((1, 1, 8), (2, 1, 16), (2, 2, 32)), (1, 2), TRIED, 12, 4, 16)


@pytest.fixture
def base(text: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A study of a small text."""
    pieces = [text[i : i + 100] for i in range(0, 5000, 100)]
    monkeypatch.setattr(module, "texts", lambda: (pieces, text[5000:]))
    return RunConfig(out=Path("runs/scaling"), device="cpu", precision="float32")


def test_sizes_are_from_10_thousand_to_30_million() -> None:
    sizes = [
        sum(p.numel() for p in build(ModernConfig(L, H, C, 256)).parameters()) for L, H, C in SHAPES
    ]
    assert len(sizes) >= 6
    assert sizes == sorted(sizes)
    assert 9e3 < sizes[0] < 1.1e4
    assert 2.5e7 < sizes[-1] < 3.5e7


def test_the_texts_are_those_of_tiny_shakespeare_and_the_rest() -> None:
    pieces, val = texts()
    tiny = corpora.load("tinyshakespeare")
    assert val == "".join(tiny.part("val"))
    text, train = "".join(pieces), "".join(tiny.part("train"))
    assert text.startswith(train)
    assert len(text) > len(train) + 3_500_000
    assert set(text) <= set(tiny.text())
    rest = corpora.load("shakespeare-rest").text()
    known, kept = set(tiny.text()), Counter(rest)
    assert Counter(text) == Counter(train) + Counter({c: kept[c] for c in kept.keys() & known})
    assert all(len(piece) >= module.PIECE for piece in sorted(pieces, key=len)[1:])
    assert sum(piece.endswith("\n\n") for piece in pieces) >= len(pieces) - 1
    assert val[:2000] not in text


def test_a_part_is_from_everywhere_and_within_a_larger_one() -> None:
    pieces = [f"{i:04}\n" for i in range(1000)]
    assert drawn(pieces, 1) == "".join(pieces)
    halves, quarter = (drawn(pieces, part).splitlines() for part in (2, 4))
    assert (len(halves), len(quarter)) == (500, 250)
    assert set(quarter) < set(halves)
    assert quarter == sorted(quarter)
    for hundred in range(10):
        assert 30 < sum(int(line) // 100 == hundred for line in halves) < 70


def test_every_run_has_the_same_text_to_measure_with(base: RunConfig, text: str) -> None:
    (Path("runs/scaling")).mkdir(parents=True)
    runs = plan(base, SMALL)
    # 0.15 to 10 parameters for a character: of the six cells, three are tried both ways.
    assert len(runs) == RUNS
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        corpus = corpora.load(run.data)
        assert "".join(corpus.part("val", run.val_fraction)) == text[5000:]
        part = int(run.name.split("-of-")[1][0])
        assert len("".join(corpus.part("train", run.val_fraction))) == 5000 // part
    sizes = [run.model.n_embd for run in runs if isinstance(run.model, ModernConfig)]
    assert sizes == sorted(sizes, reverse=True)


def test_it_runs_in_processes_and_goes_on_where_it_was_interrupted(base: RunConfig) -> None:
    def interrupt(run: RunConfig, came: Trial, done: int, of: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    says = r"saved with \d runs left; go on with: nanogpt study scaling"
    with pytest.raises(Interrupted, match=says) as raised:
        study(base, SMALL, 2, interrupt, print)
    assert raised.value.status == 128 + signal.SIGTERM
    done = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("trial.json")}
    assert 2 <= len(done) < RUNS

    told: list[tuple[str, int, int]] = []
    found = study(base, SMALL, 2, lambda run, came, n, of: told.append((run.name, n, of)), print)
    assert all(file.stat().st_mtime_ns == at for file, at in done.items())
    assert [n for _, n, _ in told] == list(range(1, RUNS + 1))
    assert {of for *_, of in told} == {RUNS}
    assert len({name for name, *_ in told}) == RUNS
    assert [(cell.n_embd, cell.D) for cell in found.cells] == [
        (8, 2500),
        (8, 5000),
        (16, 2500),
        (16, 5000),
        (32, 2500),
        (32, 5000),
    ]
    assert not list(Path("runs").rglob("*.safetensors"))
    assert json.loads(Path("runs/scaling/scaling.json").read_text())["cells"][0]["D"] == 2500
    assert Path("runs/scaling/scaling.md").read_text() == tables(found)
    for picture in ("fit", "residuals", "frontier"):
        assert "loss" in Path(f"runs/scaling/{picture}.svg").read_text()
    best = min(
        finished(run).val_loss  # type: ignore[union-attr]
        for run in plan(base, SMALL)
        if "2x32-1-of-1-" in run.name
    )
    assert found.cells[-1].loss == best


def test_a_run_that_is_killed_goes_on(base: RunConfig) -> None:
    grid = replace(SMALL, shapes=SMALL.shapes[:1], parts=(1,), steps=10_000)
    saves, says = iter((0, 400, 800)), []

    def kill(step: int) -> None:
        """Kill the process of the one run as soon as it has saved this step or a later one."""
        saved = Path("runs/scaling/1x8-1-of-1-dropout-0.0/last/config.json")
        while not saved.exists() or json.loads(saved.read_text())["step"] < step:
            time.sleep(0.05)
        (process,) = multiprocessing.active_children()
        process.kill()

    def said(line: str) -> None:
        says.append(line)
        threading.Thread(target=kill, args=(next(saves),)).start()

    threading.Thread(target=kill, args=(next(saves),)).start()
    with pytest.raises(Stopped, match=r"dropout-0.0 was killed three times, .*: the same command"):
        study(base, grid, 1, lambda *_: None, said)
    assert says == 2 * ["1x8-1-of-1-dropout-0.0 was killed (exit code -9), and goes on."]


TRUE = Law(E=1.1, A=20.0, alpha=0.4, B=120.0, beta=0.35)


def made_up(shape: tuple[int, int, int], D: int, dropout: float) -> Trial:
    """A run whose loss is that of a law, the higher the more dropout."""
    model = ModernConfig(*shape, 256, 65, dropout)
    N = sum(p.numel() for p in build(model).parameters())
    loss = TRUE.loss(N, D) + dropout
    points = [Point(k * 1000, k, loss + 1 / k) for k in range(1, 11)]
    config = RunConfig(model=model, train=TrainConfig())
    return Trial(config, loss + 0.1, 0, N, D, 9_000, 10.0, "cpu", points)


def test_it_concludes_the_law_that_losses_follow() -> None:
    amounts = [4_500_000 // part for part in PARTS]
    trials = [made_up(s, D, p) for s in SHAPES[:6] for D in amounts for p in (0.0, 0.3)]
    for trial in trials:
        object.__setattr__(trial, "val_loss", trial.val_loss - 0.1)
    found = conclude(trials, bootstraps=3)
    for fitted in (found.sum, found.free):
        assert fitted.law.alpha == pytest.approx(0.4, rel=1e-2)
        assert fitted.law.beta == pytest.approx(0.35, rel=1e-2)
        assert fitted.law.p == pytest.approx(1, rel=1e-2)
        assert fitted.error < 1e-3
        assert all(said == pytest.approx(L, rel=1e-3) for _, L, said in fitted.held_out)
    assert found.sum.bounds.keys() == {"E", "A", "alpha", "B", "beta"}
    assert len(found.runs) == len(trials) == 2 * len(found.cells)
    assert all(cell.dropout == 0 for cell in found.cells)
    for size in found.sizes:
        assert size.of_size == pytest.approx(TRUE.of_size(size.N), rel=1e-2)
        assert size.starved == (size.enough > 4_500_000)
    assert [size.starved for size in found.sizes] == sorted(size.starved for size in found.sizes)


def test_a_cell_is_its_better_run() -> None:
    losses = {0.0: 2.0, 0.3: 1.9}
    two = [replace(made_up(SHAPES[0], 1000, p), val_loss=loss) for p, loss in losses.items()]
    (cell,) = cells(two)
    assert (cell.loss, cell.dropout, cell.seconds) == (1.9, 0.3, 20.0)
    assert not cell.falling
    (best_at_the_end,) = cells([replace(two[0], tokens=10_000)])
    assert best_at_the_end.falling
    each = cell.compute / cell.tokens
    assert cell.curve[0][0] == pytest.approx(1000 * each)


def test_nothing_is_below_the_frontier() -> None:
    def cell(N: int, curve: list[tuple[float, float]]) -> Cell:
        return Cell(1, 1, 8, N, 100, 1.0, 0.0, 10, 1.0, 1.0, False, curve)

    small = cell(10, [(1.0, 3.0), (2.0, 2.5), (8.0, 2.4)])
    large = cell(1000, [(2.0, 2.9), (4.0, 2.0), (8.0, 1.5)])
    edge = frontier([small, large])
    assert edge == [(1.0, 3.0, 10), (2.0, 2.5, 10), (4.0, 2.0, 1000), (8.0, 1.5, 1000)]
    assert growth([(10.0**k, 1.0, 10 ** (2 * k)) for k in range(1, 6)]) == pytest.approx(2)
    assert math.isnan(growth(edge[:2]))
