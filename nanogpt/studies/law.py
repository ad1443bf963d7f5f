"""Scaling laws and their fit to measured losses.

A law predicts L(N, D), the loss of a model with N parameters that is trained on D tokens. Hoffmann
et al. 2022 (arXiv:2203.15556, equation 2) use L(N, D) = E + A / N^α + B / D^β. ScalingLaw is more
general: its exponent p determines how the last two terms are combined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Floats = NDArray[np.float64]
DELTA = 1e-3
"""Threshold of the Huber loss, which is quadratic for smaller errors of log L, and linear for
larger errors. The value is from Hoffmann et al."""


@dataclass(frozen=True)
class ScalingLaw:
    """The scaling law L(N, D) = E + ((A / N^α)^p + (B / D^β)^p)^(1/p).

    With p = 1, this is the law of Hoffmann et al., who train on each token once. With a large p, L
    is close to E plus the larger of the two terms; this describes training on a small text for many
    epochs. With p = 1 / β and E = 0, this is equation 1.5 of Kaplan et al. 2020 (arXiv:2001.08361),
    who stop training before the model overfits.
    """

    E: float
    """Loss with unlimited parameters and data, in nats per token."""
    A: float
    alpha: float
    B: float
    beta: float
    p: float = 1.0

    def size_term(self, N: float) -> float:
        """Return A / N^α. With unlimited data, the loss is higher than E by this amount."""
        return float(self.A / N**self.alpha)

    def data_term(self, D: float) -> float:
        """Return B / D^β. With unlimited parameters, the loss is higher than E by this amount."""
        return float(self.B / D**self.beta)

    def loss(self, N: float, D: float) -> float:
        """Return L(N, D) in nats per token."""
        size, data = self.size_term(N), self.data_term(D)
        return float(self.E + (size**self.p + data**self.p) ** (1 / self.p))

    def balanced_data(self, N: float) -> float:
        """Return the D at which B / D^β = A / N^α; with less data, B / D^β is the larger term."""
        return float((self.B / self.size_term(N)) ** (1 / self.beta))


def require_scipy() -> None:
    """Raise UserError if scipy, which fits the laws, is not installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise UserError(
            "fitting a scaling law needs scipy: install it with pip install -e '.[study]', "
            "or pip install scipy"
        ) from None


def fit(
    N: Sequence[float], D: Sequence[float], L: Sequence[float], free: bool = False
) -> ScalingLaw:
    """Fit a law to the losses L of at least six pairs (N parameters, D tokens).

    The Huber loss measures the error of log L for each pair (Hoffmann et al., equation 3). The fit
    minimises the sum of these Huber losses from many starting points, and returns the best result.
    Fits p if `free` is true; otherwise p is 1.
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    lowest = float(logs.min())
    starts = []
    for alpha, beta, share in product((0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.5, 0.9)):
        log_A = float(np.median(alpha * n)) + lowest - 1
        log_B = float(np.median(beta * d)) + lowest - 1
        start = [log_A, alpha, log_B, beta, lowest + math.log(share)]
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
    """Return the names of the parameters of a law, each with its 95% confidence interval.

    An interval is a pair (low, high). This function draws `times` samples from the (N, D, L)
    triples, with replacement, and fits a law to each sample (Efron 1979). `law` is the fit to all
    triples; the other fits start from its parameters and from values near them.
    """
    n, d, logs = (np.log(np.asarray(values, dtype=float)) for values in (N, D, L))
    start = [math.log(law.A), law.alpha, math.log(law.B), law.beta, math.log(law.E)]
    p = [math.log(law.p)] if free else []
    starts = [np.array([*start, *p]), np.array([*(0.8 * value for value in start), *p])]
    generator, laws = np.random.default_rng(seed), []
    for _ in range(times):
        sample = generator.integers(len(n), size=len(n))
        laws.append(_to_law(_minimise(n[sample], d[sample], logs[sample], starts)))
    bounds = {}
    for name in ("E", "A", "alpha", "B", "beta", *["p"] * free):
        low, high = np.percentile([getattr(law, name) for law in laws], (2.5, 97.5))
        bounds[name] = (float(low), float(high))
    return bounds


def _minimise(n: Floats, d: Floats, logs: Floats, starts: Sequence[Floats]) -> Floats:
    """Return the best fit over all starts: log A, α, log B, β, log E, and log p if p is free."""
    from scipy.optimize import least_squares

    def terms(x: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return p, and the logarithms of A / N^α, B / D^β, L - E and L."""
        log_A, alpha, log_B, beta, log_E = x[:5]
        p = np.exp(x[5:].sum())  # exp(0) = 1 if p is not free
        size, data = log_A - alpha * n, log_B - beta * d
        both = np.logaddexp(p * size, p * data) / p
        return p, size, data, both, np.logaddexp(both, log_E)

    def errors(x: Floats) -> Floats:
        return terms(x)[-1] - logs

    def jacobian(x: Floats) -> Floats:
        p, size, data, both, L = terms(x)
        share = np.exp(both - L)  # (loss - E) / loss
        by_A, by_B = share * np.exp(p * (size - both)), share * np.exp(p * (data - both))
        by_p = by_A * (size - both) + by_B * (data - both)
        columns = [by_A, -n * by_A, by_B, -d * by_B, 1 - share, by_p]
        return np.stack(columns[: len(x)], axis=1)

    low, high = [-20, 0.01, -20, 0.01, -10, 0], [40, 3, 40, 3, 3, 4]
    bounds = np.array([low[: len(starts[0])], high[: len(starts[0])]])
    settings = {"bounds": bounds, "loss": "huber", "f_scale": DELTA, "x_scale": "jac"}
    # First, make a short fit from each start, with at most 20 evaluations. Then continue the best
    # two of these fits until they converge.
    tries = [
        least_squares(errors, start.clip(*bounds), jacobian, max_nfev=20, **settings)
        for start in starts
    ]
    best = sorted(tries, key=lambda fit: float(fit.cost))[:2]
    fits = [least_squares(errors, fit.x, jacobian, **settings) for fit in best]
    lowest: Floats = min(fits, key=lambda fit: float(fit.cost)).x
    return lowest


def _to_law(x: Floats) -> ScalingLaw:
    """Convert a vector of parameters, as returned by _minimise(), to a law."""
    log_A, alpha, log_B, beta, log_E, *log_p = map(float, x)
    A, B, E = (math.exp(value) for value in (log_A, log_B, log_E))
    return ScalingLaw(E, A, alpha, B, beta, math.exp(sum(log_p)))
