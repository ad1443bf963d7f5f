"""A fit finds the scaling law from which the losses were computed."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from nanogpt.errors import UserError
from nanogpt.studies.law import ScalingLaw, bootstrap, fit, require_scipy
from tests.installing import assert_installs

TRUE = ScalingLaw(E=1.1, A=20.0, alpha=0.4, B=120.0, beta=0.35)
CELLS = [*product((1e4, 1e5, 1e6, 1e7), (2.5e5, 1e6, 4e6))]
N, D = (list(values) for values in zip(*CELLS, strict=True))
LOSSES = [TRUE.loss(n, d) for n, d in CELLS]


def test_loss_is_the_formula() -> None:
    assert TRUE.loss(1e6, 1e5) == pytest.approx(1.1 + 20 / 1e6**0.4 + 120 / 1e5**0.35)
    assert TRUE.data_term(TRUE.balanced_data(1e6)) == pytest.approx(TRUE.size_term(1e6))


def test_fit_to_exact_losses_recovers_the_law() -> None:
    fitted = fit(N, D, LOSSES)
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(fitted, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)


def test_with_a_large_p_only_the_larger_term_counts() -> None:
    law = replace(TRUE, p=3.0)
    size, data = law.size_term(1e5), law.data_term(1e6)
    assert law.loss(1e5, 1e6) == pytest.approx(1.1 + (size**3 + data**3) ** (1 / 3))
    assert replace(TRUE, p=1000.0).loss(1e5, 1e6) == pytest.approx(1.1 + max(size, data), rel=1e-3)
    # Kaplan et al. 2020, equation 1.5, where N_c = A^(1/α), D_c = B^(1/β) and E = 0.
    kaplan = replace(TRUE, E=0.0, p=1 / TRUE.beta)
    N_c, D_c = TRUE.A ** (1 / TRUE.alpha), TRUE.B ** (1 / TRUE.beta)
    term = (N_c / 1e5) ** (TRUE.alpha / TRUE.beta) + D_c / 1e6
    assert kaplan.loss(1e5, 1e6) == pytest.approx(term**TRUE.beta)


@pytest.mark.slow
def test_free_p_is_recovered_where_the_sum_does_not_fit() -> None:
    law = replace(TRUE, p=3.0)
    losses = [law.loss(n, d) for n, d in CELLS]
    fitted, added = fit(N, D, losses, free=True), fit(N, D, losses)
    for name in ("E", "A", "alpha", "B", "beta", "p"):
        assert getattr(fitted, name) == pytest.approx(getattr(law, name), rel=1e-3)
    assert added.p == 1
    assert max(abs(added.loss(n, d) / law.loss(n, d) - 1) for n, d in CELLS) > 0.02
    assert bootstrap(N, D, losses, law, 5, free=True)["p"] == pytest.approx((3, 3), rel=1e-2)


def test_one_outlier_changes_the_exponents_little() -> None:
    losses = [*LOSSES]
    losses[5] *= 1.3
    fitted = fit(N, D, losses)
    assert fitted.alpha == pytest.approx(TRUE.alpha, abs=0.02)
    assert fitted.beta == pytest.approx(TRUE.beta, abs=0.02)


@pytest.mark.slow
def test_intervals_contain_the_truth_and_grow_with_the_noise() -> None:
    generator, widths = np.random.default_rng(0), []
    for noise in (0.002, 0.02):
        losses = [loss * np.exp(generator.normal(0, noise)) for loss in LOSSES]
        bounds = bootstrap(N, D, losses, fit(N, D, losses), 40)
        low, high = bounds["alpha"]
        assert low < TRUE.alpha < high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]
    assert bootstrap(N, D, LOSSES, TRUE, 5)["beta"] == pytest.approx((0.35, 0.35), rel=1e-3)


def test_missing_scipy_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(UserError, match="a scaling law needs scipy: install it") as raised:
            require_scipy()
    assert_installs(str(raised.value), "scipy")
    require_scipy()
