"""The analysis of the scaling study: the best run of each cell, the laws, and the bottlenecks.

N is the number of parameters of a model, and D is the number of characters of its training text. A
cell is one pair of N and D. law.py defines the laws and their parameters, such as p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..models import ModernConfig, build, flops_per_token
from .law import ScalingLaw, bootstrap, fit
from .trial import Trial


@dataclass(frozen=True)
class StudyRun:
    """One run of the study."""

    name: str
    N: int
    D: int
    dropout: float
    weight_decay: float
    lr: float
    """Adam's learning rate."""
    muon_lr: float
    loss: float
    """Lowest validation loss, in nats per character."""
    tokens: int
    """Number of characters that the run had trained on when it reached its lowest loss."""
    seconds: float
    """Training time, evaluations included."""
    falling: bool
    """Whether the last evaluation has the lowest loss; if so, more steps may lower it further."""

    @staticmethod
    def from_trial(trial: Trial) -> "StudyRun":
        """Return the summary of a trial."""
        model, optim = trial.config.model, trial.config.optim
        assert isinstance(model, ModernConfig)
        return StudyRun(
            name=trial.config.name,
            N=trial.parameters,
            D=trial.train_tokens,
            dropout=model.dropout,
            weight_decay=optim.weight_decay,
            lr=optim.lr,
            muon_lr=optim.muon_lr,
            loss=trial.val_loss,
            tokens=trial.tokens,
            seconds=trial.seconds,
            falling=trial.points[-1].tokens == trial.tokens,
        )


@dataclass(frozen=True)
class Cell:
    """The best run of one model size on one amount of text."""

    n_layer: int
    n_head: int
    n_embd: int
    N: int
    """Parameters."""
    D: int
    """Characters of training text."""
    loss: float
    """Lowest validation loss, in nats per character."""
    run: str
    """Name of the run with this loss."""
    compute: float
    """Floating-point operations of the best run until its lowest loss."""
    seconds: float
    """Total training time of all runs of the cell."""
    falling: bool
    """Whether the best run has its lowest loss at its last evaluation."""


Curve = list[tuple[float, float]]
"""(floating-point operations, validation loss) at each evaluation of a run."""


@dataclass(frozen=True)
class FittedLaw:
    """A law fitted to all cells, and the quality of the fit."""

    law: ScalingLaw
    bounds: dict[str, tuple[float, float]]
    """95% confidence interval of each fitted parameter, by name."""
    error: float
    """Root mean square of the relative errors (predicted loss / measured loss - 1) of all cells."""
    largest_error: float
    """Largest absolute value of the relative errors of all cells."""
    held_out: list[tuple[int, float, float]]
    """For the largest model: (D, measured loss, loss predicted by a fit to the smaller models)."""


@dataclass(frozen=True)
class Bottleneck:
    """Whether parameters or text limit the loss of a model that is trained on all the text."""

    N: int
    of_size: float
    """A / N^α, in nats."""
    of_data: float
    """B / D^β, in nats."""
    enough: float
    """Number of characters D at which A / N^α = B / D^β."""
    more_size: float
    """Predicted decrease of the loss if the number of parameters is doubled, in nats."""
    more_data: float
    """Predicted decrease of the loss if the amount of text is doubled, in nats."""

    @property
    def is_text(self) -> bool:
        """Whether doubling the text lowers the loss more than doubling the parameters."""
        return self.more_data > self.more_size


@dataclass(frozen=True)
class ScalingResult:
    """The result of the study."""

    device: str
    runs: list[StudyRun]
    cells: list[Cell]
    """The best run of each model size on each amount of text."""
    sum: FittedLaw
    """The law with p = 1, which adds the terms A / N^α and B / D^β."""
    free: FittedLaw
    """The law with fitted p."""
    sizes: list[Bottleneck]
    """The bottleneck of each model size, from the law with fitted p."""
    curves: list[tuple[int, Curve]]
    """(N, curve) of the best run of each model size on all the text."""
    frontier: list[tuple[float, float, int]]
    """(operations, lowest loss with at most these operations, N of the model with this loss)."""
    takeovers: list[tuple[float, float]]
    """(operations, parameters) at which the loss of a model falls below the loss of the next
    smaller model, while both models still train. `parameters` is the geometric mean of their
    numbers of parameters."""
    exponent: float | None
    """The best number of parameters grows as operations^exponent. The exponent is the slope of the
    takeovers on log-log axes."""


def analyse_trials(trials: Sequence[Trial], bootstraps: int = 300) -> ScalingResult:
    """Fit the laws to the trials of a grid; `bootstraps` is the number of bootstrap samples."""
    cells = select_cells(trials)
    all_text = max(cell.D for cell in cells)
    free = fit_grid(cells, True, bootstraps)
    law = free.law
    best_runs = {cell.run for cell in cells if all_text == cell.D}
    curves = sorted(
        (trial.parameters, make_curve(trial)) for trial in trials if trial.config.name in best_runs
    )
    takeovers = find_takeovers(curves)
    return ScalingResult(
        device=trials[0].device,
        runs=[StudyRun.from_trial(trial) for trial in trials],
        cells=cells,
        sum=fit_grid(cells, False, bootstraps),
        free=free,
        sizes=[
            Bottleneck(
                N=N,
                of_size=law.size_term(N),
                of_data=law.data_term(all_text),
                enough=law.balanced_data(N),
                more_size=law.loss(N, all_text) - law.loss(2 * N, all_text),
                more_data=law.loss(N, all_text) - law.loss(N, 2 * all_text),
            )
            for N in sorted({cell.N for cell in cells})
        ],
        curves=curves,
        frontier=find_frontier(curves),
        takeovers=takeovers,
        exponent=fit_exponent(takeovers),
    )


def fit_grid(cells: Sequence[Cell], free: bool, bootstraps: int) -> FittedLaw:
    """Fit a law to `cells` and measure its errors. p is fitted if `free` is true, else p = 1."""

    def unzip(cells: Sequence[Cell]) -> tuple[list[float], list[float], list[float]]:
        return [c.N for c in cells], [c.D for c in cells], [c.loss for c in cells]

    law = fit(*unzip(cells), free)
    errors = [law.loss(cell.N, cell.D) / cell.loss - 1 for cell in cells]
    largest = max(cell.N for cell in cells)
    smaller_law = fit(*unzip([cell for cell in cells if largest > cell.N]), free)
    return FittedLaw(
        law=law,
        bounds=bootstrap(*unzip(cells), law, bootstraps, free),
        error=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        largest_error=max(map(abs, errors)),
        held_out=[(c.D, c.loss, smaller_law.loss(c.N, c.D)) for c in cells if largest == c.N],
    )


def make_curve(trial: Trial) -> Curve:
    """Return (floating-point operations, validation loss) for each evaluation of a trial."""
    flops = float(flops_per_token(build(trial.config.model)))
    return [(flops * point.tokens, point.loss) for point in trial.points]


def find_frontier(curves: Sequence[tuple[int, Curve]]) -> list[tuple[float, float, int]]:
    """Return (operations, loss, N) at each new lowest loss, in ascending order of operations."""
    points = sorted((C, loss, N) for N, curve in curves for C, loss in curve)
    frontier: list[tuple[float, float, int]] = []
    for point in points:
        if not frontier or point[1] < frontier[-1][1]:
            frontier.append(point)
    return frontier


def find_takeovers(curves: Sequence[tuple[int, Curve]]) -> list[tuple[float, float]]:
    """Return (operations, parameters) where a model gets a lower loss than the next smaller model.

    `parameters` is the geometric mean of the two models' numbers of parameters. The curve of a
    model ends at its last step, so the curves of two models may end before they cross.
    """
    takeovers = []
    for (small_N, small_curve), (large_N, large_curve) in pairwise(curves):
        (small_C, small_loss), (large_C, large_loss) = (
            np.array(curve).T for curve in (small_curve, large_curve)
        )
        log_C = np.union1d(np.log(small_C), np.log(large_C))
        log_C = log_C[(log_C >= np.log(large_C[0])) & (log_C <= np.log(small_C[-1]))]
        lag = np.interp(log_C, np.log(large_C), large_loss)
        lag -= np.interp(log_C, np.log(small_C), small_loss)
        ahead = np.flatnonzero(lag < 0)
        if len(ahead) and (i := ahead[0]):
            share = lag[i - 1] / (lag[i - 1] - lag[i])  # linear interpolation of the zero crossing
            crossing = log_C[i - 1] + share * (log_C[i] - log_C[i - 1])
            takeovers.append((float(np.exp(crossing)), math.sqrt(small_N * large_N)))
    return takeovers


def fit_exponent(takeovers: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of log(parameters) against log(operations); None for fewer than 2 points."""
    if len(takeovers) < 2:
        return None
    operations, sizes = zip(*takeovers, strict=True)
    return float(np.polyfit(np.log(operations), np.log(sizes), 1)[0])


def select_cells(trials: Sequence[Trial]) -> list[Cell]:
    """Return the cells of the grid, each with its best trial, sorted by N and D."""
    by_cell: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        by_cell.setdefault((trial.parameters, trial.train_tokens), []).append(trial)
    cells = []
    for (N, D), candidates in sorted(by_cell.items()):
        best_trial = min(candidates, key=lambda trial: trial.val_loss)
        best, model = StudyRun.from_trial(best_trial), best_trial.config.model
        assert isinstance(model, ModernConfig)
        cells.append(
            Cell(
                n_layer=model.n_layer,
                n_head=model.n_head,
                n_embd=model.n_embd,
                N=N,
                D=D,
                loss=best.loss,
                run=best.name,
                compute=float(flops_per_token(build(model))) * best.tokens,
                seconds=round(sum(trial.seconds for trial in candidates), 3),
                falling=best.falling,
            )
        )
    return cells


def format_tables(result: ScalingResult) -> str:
    """Return the tables of the study in Markdown: losses, laws, bottlenecks, predictions."""
    amounts = sorted({cell.D for cell in result.cells})
    by_cell = {(cell.N, cell.D): cell for cell in result.cells}
    lines = [
        "| parameters | " + " | ".join(f"{D:,} characters" for D in amounts) + " |",
        "| --- |" + " --- |" * len(amounts),
    ]
    for size in result.sizes:
        losses = [by_cell.get((size.N, D)) for D in amounts]
        shown = " | ".join(
            f"{cell.loss:.4f}{'*' if cell.falling else ''}" if cell else "" for cell in losses
        )
        lines.append(f"| {size.N:,} | {shown} |")
    lines += ["", "\\* The loss was still falling at the last step.", ""]
    lines += ["| | p = 1 (a sum) | 95% | p fitted | 95% |", "| --- | --- | --- | --- | --- |"]
    for name, sign in zip(("E", "A", "alpha", "B", "beta", "p"), "EAαBβp", strict=True):
        shown = " | ".join(_format_parameter(fitted, name) for fitted in (result.sum, result.free))
        lines.append(f"| {sign} | {shown} |")
    added, free = result.sum, result.free
    lines += [
        f"| root mean square error | {added.error:.2%} | | {free.error:.2%} | |",
        f"| largest error | {added.largest_error:.2%} | | {free.largest_error:.2%} | |",
        "",
        "| parameters | A / N^α | B / D^β, all text | D at which the two terms are equal "
        "| gain from twice the parameters | gain from twice the text | bottleneck |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in result.sizes:
        bottleneck = "text" if size.is_text else "parameters"
        lines.append(
            f"| {size.N:,} | {size.of_size:.3f} | {size.of_data:.3f} | {size.enough:,.0f} "
            f"| {size.more_size:.4f} | {size.more_data:.4f} | {bottleneck} |"
        )
    lines += [
        "",
        "| text | largest model, measured | predicted from smaller models, p = 1 "
        "| predicted from smaller models, p fitted |",
        "| --- | --- | --- | --- |",
    ]
    for (D, measured, by_sum), (*_, by_free) in zip(added.held_out, free.held_out, strict=True):
        lines.append(f"| {D:,} | {measured:.4f} | {by_sum:.4f} | {by_free:.4f} |")
    if result.exponent is not None:
        growth = f"the number of parameters grows as operations^{result.exponent:.2f}"
        overtakes = "A model overtakes the next smaller model when the larger model has the lower"
        overtakes += " loss after the same number of operations."
        lines += ["", f"{overtakes} At these points, {growth}."]
    lines += ["", f"{result.device}."]
    return "\n".join(lines) + "\n"


def _format_parameter(fitted: FittedLaw, name: str) -> str:
    """Return two table columns: a parameter of a law, and its interval if it was fitted."""
    value = f"{getattr(fitted.law, name):.3g}"
    if name not in fitted.bounds:
        return f"{value} |"
    low, high = fitted.bounds[name]
    return f"{value} | {low:.3g} to {high:.3g}"
