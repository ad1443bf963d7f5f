"""The analysis of a scaling study whose losses follow a known law."""

import functools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt.models import ModernConfig, build
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.studies.findings import (
    analyse_trials,
    find_frontier,
    find_takeovers,
    fit_exponent,
    format_tables,
    make_curve,
    select_cells,
)
from nanogpt.studies.law import ScalingLaw
from nanogpt.studies.scaling import PARTS, SHAPES
from nanogpt.studies.trial import Point, Trial

TRUE = ScalingLaw(E=1.1, A=20.0, alpha=0.4, B=120.0, beta=0.35)


@functools.cache
def count_parameters(shape: tuple[int, int, int]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(ModernConfig(*shape, 256)).parameters())


def make_trial(shape: tuple[int, int, int], D: int, dropout: float) -> Trial:
    """Make a trial. Its lowest loss is `TRUE.loss(N, D)` plus `dropout` plus 0.1."""
    model = ModernConfig(*shape, 256, 65, dropout)
    N = count_parameters(shape)
    loss = TRUE.loss(N, D) + dropout
    points = [Point(k * 1000, k, loss + 1 / k) for k in range(1, 11)]
    config = RunConfig(name=f"{N} {D} {dropout}", model=model, train=TrainConfig())
    return Trial(config, "", loss + 0.1, 0, N, D, 9_000, 10.0, "cpu", points)


@pytest.mark.slow
def test_analysis_finds_the_law_that_the_losses_follow() -> None:
    amounts = [4_500_000 // part for part in PARTS]
    trials = [make_trial(s, D, p) for s in SHAPES[:6] for D in amounts for p in (0.0, 0.3)]
    for trial in trials:
        object.__setattr__(trial, "val_loss", trial.val_loss - 0.1)
    result = analyse_trials(trials, bootstraps=3)
    for fitted in (result.sum, result.free):
        assert fitted.law.alpha == pytest.approx(0.4, rel=1e-2)
        assert fitted.law.beta == pytest.approx(0.35, rel=1e-2)
        assert fitted.law.p == pytest.approx(1, rel=1e-2)
        assert fitted.error < 1e-3
        assert all(predicted == pytest.approx(L, rel=1e-3) for _, L, predicted in fitted.held_out)
    assert result.sum.bounds.keys() == {"E", "A", "alpha", "B", "beta"}
    assert result.free.bounds.keys() == {*result.sum.bounds, "p"}
    assert len(result.runs) == len(trials) == 2 * len(result.cells)
    assert all(cell.run == f"{cell.N} {cell.D} 0.0" for cell in result.cells)
    assert [N for N, _ in result.curves] == [size.N for size in result.sizes]
    assert result.curves[0][1] == make_curve(
        next(t for t in trials if t.train_tokens == amounts[0])
    )
    for size in result.sizes:
        assert size.of_size == pytest.approx(TRUE.size_term(size.N), rel=1e-2)
        assert TRUE.data_term(size.enough) == pytest.approx(TRUE.size_term(size.N), rel=1e-2)


@pytest.mark.slow
def test_largest_size_is_predicted_from_the_smaller_sizes_only() -> None:
    law, amounts = replace(TRUE, p=3.0), [4_500_000 // part for part in PARTS]
    trials = [make_trial(s, D, 0.0) for s in SHAPES[:6] for D in amounts]
    largest = max(trial.parameters for trial in trials)
    for trial in trials:
        loss = law.loss(trial.parameters, trial.train_tokens)
        object.__setattr__(trial, "val_loss", loss + 0.1 * (trial.parameters == largest))
    result = analyse_trials(trials, bootstraps=1)
    assert [D for D, *_ in result.free.held_out] == sorted(amounts)
    for D, measured, predicted in result.free.held_out:
        assert predicted == pytest.approx(law.loss(largest, D), rel=1e-3)
        assert measured == pytest.approx(predicted + 0.1, rel=1e-3)
    assert result.free.largest_error > 0.01


@pytest.mark.slow
def test_doubling_the_bottleneck_lowers_the_loss_more() -> None:
    law, amounts = replace(TRUE, B=20.0, p=3.0), [4_500_000 // part for part in PARTS]
    trials = [make_trial(s, D, 0.0) for s in SHAPES for D in amounts]
    for trial in trials:
        loss = law.loss(trial.parameters, trial.train_tokens)
        object.__setattr__(trial, "val_loss", loss)
    result = analyse_trials(trials, bootstraps=1)
    assert result.free.law.p == pytest.approx(3, rel=1e-2)
    most = max(amounts)
    for size in result.sizes:
        now = law.loss(size.N, most)
        assert size.more_size == pytest.approx(now - law.loss(2 * size.N, most), rel=2e-2)
        assert size.more_data == pytest.approx(now - law.loss(size.N, 2 * most), rel=2e-2)
    is_text = [size.is_text for size in result.sizes]
    assert is_text == sorted(is_text)
    assert {*is_text} == {False, True}


def test_cell_has_the_best_of_its_runs() -> None:
    losses = {0.0: 2.0, 0.3: 1.9}
    two = [replace(make_trial(SHAPES[0], 1000, p), val_loss=loss) for p, loss in losses.items()]
    (cell,) = select_cells(two)
    assert (cell.loss, cell.run, cell.seconds) == (1.9, two[1].config.name, 20.0)
    assert not cell.falling
    (best_at_the_end,) = select_cells([replace(two[0], tokens=10_000)])
    assert best_at_the_end.falling
    each = cell.compute / two[1].tokens
    operations, loss = make_curve(two[1])[0]
    assert operations == pytest.approx(1000 * each)
    assert loss == two[1].points[0].loss


def test_frontier_has_each_new_lowest_loss() -> None:
    small = 10, [(1.0, 3.0), (2.0, 2.5), (8.0, 2.4)]
    large = 1000, [(2.0, 2.9), (4.0, 2.0), (8.0, 1.5)]
    frontier = find_frontier([small, large])
    assert frontier == [(1.0, 3.0, 10), (2.0, 2.5, 10), (4.0, 2.0, 1000), (8.0, 1.5, 1000)]


def test_takeover_is_where_the_curves_cross() -> None:
    small = 10, [(10.0**k, 3.0 - 0.2 * k) for k in range(6)]  # loss 3.0 at 1 operation, 2.0 at 10⁵
    large = 1000, [(10.0**k, 4.0 - 0.6 * k) for k in range(1, 7)]  # crosses `small` at 10^2.5
    # The curve `late` is higher than `large` until `large` ends.
    late = 4000, [(10.0**k, 5.0 - 0.5 * k) for k in range(1, 9)]
    ((operations, parameters),) = find_takeovers([small, large, late])
    assert operations == pytest.approx(10**2.5)
    assert parameters == pytest.approx(100)
    first = 4000, [(10.0**k, 1.0) for k in range(3, 5)]  # always lower than `small`: no crossing
    assert find_takeovers([small, first]) == []
    assert fit_exponent([(10.0**k, 10.0 ** (2 * k)) for k in range(1, 6)]) == pytest.approx(2)
    assert fit_exponent([(1.0, 1.0)]) is None


@pytest.mark.slow
def test_tables_name_the_root_mean_square_error() -> None:
    amounts = [4_500_000 // part for part in PARTS]
    trials = [make_trial(shape, D, 0.0) for shape in SHAPES[:4] for D in amounts]
    result = analyse_trials(trials, bootstraps=1)
    errors = [result.free.law.loss(cell.N, cell.D) / cell.loss - 1 for cell in result.cells]
    assert result.free.error == pytest.approx((sum(e * e for e in errors) / len(errors)) ** 0.5)
    error, largest = result.free.error, max(map(abs, errors))
    table = format_tables(result)
    assert re.search(rf"^\| root mean square error \| .* \| {error:.2%} \| \|$", table, re.M)
    assert re.search(rf"^\| largest error \| .* \| {largest:.2%} \| \|$", table, re.M)


def test_docs_name_the_cells_below_the_floor_and_the_errors() -> None:
    root = Path(__file__).parent.parent.parent
    page = " ".join((root / "docs" / "studies.md").read_text("utf-8").split())
    saved = json.loads((root / "benchmarks" / "results" / "scaling" / "scaling.json").read_text())
    law, cells = ScalingLaw(**saved["free"]["law"]), saved["cells"]
    gaps = [law.E + law.data_term(cell["D"]) - cell["loss"] for cell in cells]
    below = sorted((gap for gap in gaps if gap > 0), reverse=True)
    assert (len(below), len(cells)) == (4, 35)
    assert all(cell["loss"] > law.E for cell in cells)
    assert "4 of the 35 measured losses are lower than the law allows" in page
    assert f"limit, by {', '.join(f'{gap:.4f}' for gap in below)} nats" in page
    assert f"The error of the sum (p = 1) is {saved['sum']['error']:.1%}." in page
    free = saved["free"]
    assert (
        f"the error of the law is {free['error']:.1%}, and the largest error of a cell is" in page
    )
    assert f"of a cell is {free['largest_error']:.1%}." in page
    assert f"In {sum(cell['falling'] for cell in cells)} of the 35 cells, marked" in page
    held_out = {
        name: [predicted / measured - 1 for _, measured, predicted in saved[name]["held_out"]]
        for name in ("sum", "free")
    }
    assert -0.012 < min(held_out["free"]) <= max(held_out["free"]) < 0
    assert 0.055 < max(map(abs, held_out["sum"])) < 0.06
    worst = {name: max(map(abs, errors)) for name, errors in held_out.items()}
    assert f"errors of at most {worst['free']:.1%}. All predictions are too low." in page
    assert f"With p = 1 (a sum), the largest error is {worst['sum']:.1%}." in page
    runs = Counter((run["N"], run["D"]) for run in saved["runs"])
    single = sum(count == 1 for count in runs.values())
    assert f"{single} of the 35 cells have a single run" in page
    (curve,) = (curve for N, curve in saved["curves"] if N == 7_005_312)
    gain = curve[-6][1] - curve[-1][1]  # the evaluations are 100 steps apart
    assert f"fell by {gain:.3f} in the last 500 steps" in page
