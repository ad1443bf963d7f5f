"""What a study of scaling concludes from its runs."""

from dataclasses import replace

import pytest

from nanogpt.models import ModernConfig, build
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.studies.findings import (
    analyse_trials,
    find_frontier,
    find_takeovers,
    fit_exponent,
    make_curve,
    select_cells,
)
from nanogpt.studies.law import ScalingLaw
from nanogpt.studies.scaling import PARTS, SHAPES
from nanogpt.studies.trial import Point, Trial

TRUE = ScalingLaw(E=1.1, A=20.0, alpha=0.4, B=120.0, beta=0.35)


def made_up(shape: tuple[int, int, int], D: int, dropout: float) -> Trial:
    """A run whose loss is that of a law, the higher the more dropout."""
    model = ModernConfig(*shape, 256, 65, dropout)
    N = sum(p.numel() for p in build(model).parameters())
    loss = TRUE.loss(N, D) + dropout
    points = [Point(k * 1000, k, loss + 1 / k) for k in range(1, 11)]
    config = RunConfig(name=f"{N} {D} {dropout}", model=model, train=TrainConfig())
    return Trial(config, "", loss + 0.1, 0, N, D, 9_000, 10.0, "cpu", points)


def test_it_concludes_the_law_that_losses_follow() -> None:
    amounts = [4_500_000 // part for part in PARTS]
    trials = [made_up(s, D, p) for s in SHAPES[:6] for D in amounts for p in (0.0, 0.3)]
    for trial in trials:
        object.__setattr__(trial, "val_loss", trial.val_loss - 0.1)
    found = analyse_trials(trials, bootstraps=3)
    for fitted in (found.sum, found.free):
        assert fitted.law.alpha == pytest.approx(0.4, rel=1e-2)
        assert fitted.law.beta == pytest.approx(0.35, rel=1e-2)
        assert fitted.law.p == pytest.approx(1, rel=1e-2)
        assert fitted.error < 1e-3
        assert all(said == pytest.approx(L, rel=1e-3) for _, L, said in fitted.held_out)
    assert found.sum.bounds.keys() == {"E", "A", "alpha", "B", "beta"}
    assert found.free.bounds.keys() == {*found.sum.bounds, "p"}
    assert len(found.runs) == len(trials) == 2 * len(found.cells)
    assert all(cell.run == f"{cell.N} {cell.D} 0.0" for cell in found.cells)
    assert [N for N, _ in found.curves] == [size.N for size in found.sizes]
    assert found.curves[0][1] == make_curve(next(t for t in trials if t.train_tokens == amounts[0]))
    for size in found.sizes:
        assert size.of_size == pytest.approx(TRUE.size_term(size.N), rel=1e-2)
        assert TRUE.data_term(size.enough) == pytest.approx(TRUE.size_term(size.N), rel=1e-2)


def test_the_largest_size_is_predicted_from_the_others_alone() -> None:
    law, amounts = replace(TRUE, p=3.0), [4_500_000 // part for part in PARTS]
    trials = [made_up(s, D, 0.0) for s in SHAPES[:6] for D in amounts]
    largest = max(trial.parameters for trial in trials)
    for trial in trials:
        loss = law.loss(trial.parameters, trial.train_tokens)
        object.__setattr__(trial, "val_loss", loss + 0.1 * (trial.parameters == largest))
    found = analyse_trials(trials, bootstraps=1)
    assert [D for D, *_ in found.free.held_out] == sorted(amounts)
    for D, measured, said in found.free.held_out:
        assert said == pytest.approx(law.loss(largest, D), rel=1e-3)
        assert measured == pytest.approx(said + 0.1, rel=1e-3)
    assert found.free.largest_error > 0.01


def test_who_is_starved_is_whom_more_text_helps_more() -> None:
    law, amounts = replace(TRUE, B=20.0, p=3.0), [4_500_000 // part for part in PARTS]
    trials = [made_up(s, D, 0.0) for s in SHAPES for D in amounts]
    for trial in trials:
        loss = law.loss(trial.parameters, trial.train_tokens)
        object.__setattr__(trial, "val_loss", loss)
    found = analyse_trials(trials, bootstraps=1)
    assert found.free.law.p == pytest.approx(3, rel=1e-2)
    most = max(amounts)
    for size in found.sizes:
        now = law.loss(size.N, most)
        assert size.more_size == pytest.approx(now - law.loss(2 * size.N, most), rel=2e-2)
        assert size.more_data == pytest.approx(now - law.loss(size.N, 2 * most), rel=2e-2)
    starved = [size.starved for size in found.sizes]
    assert starved == sorted(starved)
    assert {*starved} == {False, True}


def test_a_cell_is_its_better_run() -> None:
    losses = {0.0: 2.0, 0.3: 1.9}
    two = [replace(made_up(SHAPES[0], 1000, p), val_loss=loss) for p, loss in losses.items()]
    (cell,) = select_cells(two)
    assert (cell.loss, cell.run, cell.seconds) == (1.9, two[1].config.name, 20.0)
    assert not cell.falling
    (best_at_the_end,) = select_cells([replace(two[0], tokens=10_000)])
    assert best_at_the_end.falling
    each = cell.compute / two[1].tokens
    operations, loss = make_curve(two[1])[0]
    assert operations == pytest.approx(1000 * each)
    assert loss == two[1].points[0].loss


def test_nothing_is_below_the_frontier() -> None:
    small = 10, [(1.0, 3.0), (2.0, 2.5), (8.0, 2.4)]
    large = 1000, [(2.0, 2.9), (4.0, 2.0), (8.0, 1.5)]
    edge = find_frontier([small, large])
    assert edge == [(1.0, 3.0, 10), (2.0, 2.5, 10), (4.0, 2.0, 1000), (8.0, 1.5, 1000)]


def test_a_size_takes_over_where_it_gets_ahead() -> None:
    small = 10, [(10.0**k, 3.0 - 0.2 * k) for k in range(6)]  # 3.0 at 1 to 2.0 at 100,000
    large = 1000, [(10.0**k, 4.0 - 0.6 * k) for k in range(1, 7)]  # as good after 10^2.5
    late = 4000, [(10.0**k, 5.0 - 0.5 * k) for k in range(1, 9)]  # ahead when large is done
    ((operations, parameters),) = find_takeovers([small, large, late])
    assert operations == pytest.approx(10**2.5)
    assert parameters == pytest.approx(100)
    first = 4000, [(10.0**k, 1.0) for k in range(3, 5)]  # ahead from the start
    assert find_takeovers([small, first]) == []
    assert fit_exponent([(10.0**k, 10.0 ** (2 * k)) for k in range(1, 6)]) == pytest.approx(2)
    assert fit_exponent([(1.0, 1.0)]) is None
