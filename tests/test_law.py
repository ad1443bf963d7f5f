"""A law of scaling, fitted to losses that it made."""

import sys
from itertools import product

import numpy as np
import pytest

from nanogpt.errors import UserError
from nanogpt.studies.law import Law, bootstrap, fit, require_scipy

TRUE = Law(E=1.1, A=20.0, alpha=0.4, B=120.0, beta=0.35)
CELLS = [*product((1e4, 1e5, 1e6, 1e7), (2.5e5, 1e6, 4e6))]
N, D = (list(values) for values in zip(*CELLS, strict=True))
LOSSES = [TRUE.loss(n, d) for n, d in CELLS]


def test_it_is_its_formula() -> None:
    assert TRUE.loss(1e6, 1e5) == pytest.approx(1.1 + 20 / 1e6**0.4 + 120 / 1e5**0.35)
    assert TRUE.of_data(TRUE.enough_data(1e6)) == pytest.approx(TRUE.of_size(1e6))


def test_exact_losses_give_the_law_back() -> None:
    found = fit(N, D, LOSSES)
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)


def test_one_outlier_changes_little() -> None:
    losses = [*LOSSES]
    losses[5] *= 1.3
    found = fit(N, D, losses)
    assert found.alpha == pytest.approx(TRUE.alpha, abs=0.02)
    assert found.beta == pytest.approx(TRUE.beta, abs=0.02)


def test_intervals_hold_the_truth_and_grow_with_the_noise() -> None:
    draw, widths = np.random.default_rng(0), []
    for noise in (0.002, 0.02):
        losses = [loss * np.exp(draw.normal(0, noise)) for loss in LOSSES]
        bounds = bootstrap(N, D, losses, fit(N, D, losses), 40)
        low, high = bounds["alpha"]
        assert low < TRUE.alpha < high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]
    assert bootstrap(N, D, LOSSES, TRUE, 5)["beta"] == pytest.approx((0.35, 0.35), rel=1e-3)


def test_without_scipy_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    require_scipy()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UserError, match="the fit needs scipy: install it"):
        require_scipy()
