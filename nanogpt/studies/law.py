"""A law of scaling, fitted: L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, eq. 2)."""

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
class Law:
    """Its five numbers."""

    E: float
    """Nats a token that are left with endless parameters and data."""
    A: float
    alpha: float
    B: float
    beta: float

    def of_size(self, N: float) -> float:
        """A / N^α: what more parameters could gain."""
        return float(self.A / N**self.alpha)

    def of_data(self, D: float) -> float:
        """B / D^β: what more data could gain."""
        return float(self.B / D**self.beta)

    def loss(self, N: float, D: float) -> float:
        """L(N, D)."""
        return self.E + self.of_size(N) + self.of_data(D)

    def enough_data(self, N: float) -> float:
        """The D at which more data gains as little as more parameters: with less, N is starved."""
        return float((self.B / self.of_size(N)) ** (1 / self.beta))


def require_scipy() -> None:
    """Raise UserError where the library that fits is missing."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise UserError(
            "the fit needs scipy: install it with pip install -e '.[study]', or pip install scipy"
        ) from None


def fit(N: Sequence[float], D: Sequence[float], L: Sequence[float]) -> Law:
    """The law that is nearest to losses L of sizes N and data D: five or more of each.

    By the sum of Huber losses of the errors of log L, from many starts (Hoffmann et al., eq. 3).
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    lowest = float(logs.min())
    starts = []
    for alpha, beta, part in product((0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.5, 0.9)):
        size = float(np.median(alpha * n)) + lowest - 1
        data = float(np.median(beta * d)) + lowest - 1
        starts.append(np.array([size, alpha, data, beta, lowest + np.log(part)]))
    return _law(_best(n, d, logs, starts))


def bootstrap(
    N: Sequence[float], D: Sequence[float], L: Sequence[float], law: Law, times: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Between which bounds each number of the law is in 95% of fits to drawn sets of the same runs.

    Each set has as many, drawn with replacement (Efron 1979).
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    start = np.array([np.log(law.A), law.alpha, np.log(law.B), law.beta, np.log(law.E)])
    near = [start, start * 0.8]
    draw, found = np.random.default_rng(seed), []
    for _ in range(times):
        which = draw.integers(len(n), size=len(n))
        found.append(_law(_best(n[which], d[which], logs[which], near)))
    bounds = {}
    for name in ("E", "A", "alpha", "B", "beta"):
        low, high = np.percentile([getattr(one, name) for one in found], (2.5, 97.5))
        bounds[name] = (float(low), float(high))
    return bounds


def _best(n: Numbers, d: Numbers, logs: Numbers, starts: Sequence[Numbers]) -> Numbers:
    """The best of the fits from starts: log A, α, log B, β, log E."""
    from scipy.optimize import least_squares

    def errors(x: Numbers) -> Numbers:
        a, alpha, b, beta, e = x
        terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        off: Numbers = np.logaddexp.reduce(terms, axis=0) - logs
        return off

    low, high = [-20, 0.01, -20, 0.01, -10], [40, 3, 40, 3, 3]
    how = {"bounds": (low, high), "loss": "huber", "f_scale": DELTA}
    fits = [least_squares(errors, start.clip(low, high), **how) for start in starts]
    best: Numbers = min(fits, key=lambda fit: float(fit.cost)).x
    return best


def _law(x: Numbers) -> Law:
    a, alpha, b, beta, e = (float(number) for number in x)
    return Law(E=np.exp(e).item(), A=np.exp(a).item(), alpha=alpha, B=np.exp(b).item(), beta=beta)
