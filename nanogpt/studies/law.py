"""Laws of scaling, fitted: L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, eq. 2), and one
in which what is missing does not add up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Numbers = NDArray[np.float64]
DELTA = 1e-3
"""From where on an error of log L counts as it is, and no longer squared (Hoffmann et al.)."""


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + ((A / N^α)^p + (B / D^β)^p)^(1/p).

    With p of 1 that is the sum of Hoffmann et al., for text of which nothing is read twice. Where a
    small text is read again and again, what is scarcer hides the other: the larger p, the more
    only the larger of the two counts. With p of 1 / β and E of 0 it is equation 1.5 of Kaplan et
    al. 2020 (arXiv:2001.08361), for models whose training ends before they learn by heart.
    """

    E: float
    """Nats a token that are left with endless parameters and data."""
    A: float
    alpha: float
    B: float
    beta: float
    p: float = 1.0

    def size_term(self, N: float) -> float:
        """A / N^α: what more parameters could gain, had they all the data that they want."""
        return float(self.A / N**self.alpha)

    def data_term(self, D: float) -> float:
        """B / D^β: what more data could gain, were there all the parameters that it wants."""
        return float(self.B / D**self.beta)

    def loss(self, N: float, D: float) -> float:
        """L(N, D)."""
        size, data = self.size_term(N), self.data_term(D)
        return float(self.E + (size**self.p + data**self.p) ** (1 / self.p))

    def balanced_data(self, N: float) -> float:
        """The D at which B / D^β is A / N^α: with less, most of what is missing is data."""
        return float((self.B / self.size_term(N)) ** (1 / self.beta))


def require_scipy() -> None:
    """Raise UserError where the library that fits is missing."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise UserError(
            "the fit needs scipy: install it with pip install -e '.[study]', or pip install scipy"
        ) from None


def fit(
    N: Sequence[float], D: Sequence[float], L: Sequence[float], free: bool = False
) -> ScalingLaw:
    """The law that is nearest to losses L of sizes N and data D: six or more of each.

    By the sum of Huber losses of the errors of log L, from many starts (Hoffmann et al., eq. 3).
    p is 1, or free.
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    lowest = float(logs.min())
    starts = []
    for alpha, beta, part in product((0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.5, 0.9)):
        size = float(np.median(alpha * n)) + lowest - 1
        data = float(np.median(beta * d)) + lowest - 1
        start = [size, alpha, data, beta, lowest + math.log(part)]
        starts.append(np.array([*start, math.log(4)] if free else start))
    return _to_law(_minimise(n, d, logs, starts))


def bootstrap(
    N: Sequence[float],
    D: Sequence[float],
    L: Sequence[float],
    law: ScalingLaw,
    times: int,
    free: bool = False,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Between which bounds each number of the law is in 95% of fits to drawn sets of the same runs.

    Each set has as many, drawn with replacement (Efron 1979). law is the fit to all, with p of 1 or
    free.
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    start = [math.log(law.A), law.alpha, math.log(law.B), law.beta, math.log(law.E)]
    p = [math.log(law.p)] if free else []
    near = [np.array([*start, *p]), np.array([*(0.8 * number for number in start), *p])]
    draw, found = np.random.default_rng(seed), []
    for _ in range(times):
        which = draw.integers(len(n), size=len(n))
        found.append(_to_law(_minimise(n[which], d[which], logs[which], near)))
    bounds = {}
    for name in ("E", "A", "alpha", "B", "beta", *["p"] * free):
        low, high = np.percentile([getattr(one, name) for one in found], (2.5, 97.5))
        bounds[name] = (float(low), float(high))
    return bounds


def _minimise(n: Numbers, d: Numbers, logs: Numbers, starts: Sequence[Numbers]) -> Numbers:
    """The best of the fits from starts: log A, α, log B, β, log E, and log p where it is free."""
    from scipy.optimize import least_squares

    def errors(x: Numbers) -> Numbers:
        a, alpha, b, beta, e = x[:5]
        p = np.exp(x[5:].sum())  # 1 if there is none
        missing = np.logaddexp(p * (a - alpha * n), p * (b - beta * d)) / p
        off: Numbers = np.logaddexp(missing, e) - logs
        return off

    low, high = [-20, 0.01, -20, 0.01, -10, 0], [40, 3, 40, 3, 3, 4]
    bounds = low[: len(starts[0])], high[: len(starts[0])]
    how = {"bounds": bounds, "loss": "huber", "f_scale": DELTA}
    fits = [least_squares(errors, start.clip(*bounds), **how) for start in starts]
    best: Numbers = min(fits, key=lambda fit: float(fit.cost)).x
    return best


def _to_law(x: Numbers) -> ScalingLaw:
    a, alpha, b, beta, e, *p = (float(number) for number in x)
    return ScalingLaw(math.exp(e), math.exp(a), alpha, math.exp(b), beta, math.exp(sum(p)))
