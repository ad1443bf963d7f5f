"""What the runs of a study of scaling say: the best of each cell, laws, and who is starved."""

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
    """A run of the study."""

    name: str
    N: int
    D: int
    dropout: float
    weight_decay: float
    lr: float
    """Adam's learning rate."""
    muon_lr: float
    loss: float
    """The lowest on the validation text, in nats per character."""
    tokens: int
    """Characters trained on until then."""
    seconds: float
    falling: bool
    """Whether its loss was lowest at the end: it would have gained from more steps."""

    @staticmethod
    def from_trial(trial: Trial) -> "StudyRun":
        """The run that a trial is."""
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
    """A size on an amount of data: the best of its runs."""

    n_layer: int
    n_head: int
    n_embd: int
    N: int
    """Parameters."""
    D: int
    """Characters to learn from."""
    loss: float
    """The lowest on the validation text, in nats per character."""
    run: str
    """The name of the run that has it."""
    compute: float
    """Operations until then."""
    seconds: float
    """Of training of all runs of the cell."""
    falling: bool
    """Whether that run's loss was lowest at the end."""


Curve = list[tuple[float, float]]
"""(operations, loss) of a run, evaluation by evaluation."""


@dataclass(frozen=True)
class FittedLaw:
    """A law, and how well it holds."""

    law: ScalingLaw
    bounds: dict[str, tuple[float, float]]
    """95% intervals of its numbers."""
    error: float
    """Root of the mean square of predicted over measured loss, less one."""
    largest_error: float
    held_out: list[tuple[int, float, float]]
    """(D, measured, predicted) of the largest size by the law that the smaller ones have."""


@dataclass(frozen=True)
class Bottleneck:
    """What holds back a size of model, with all the data that there is."""

    N: int
    of_size: float
    """A / N^α in nats."""
    of_data: float
    """B / D^β in nats."""
    enough: float
    """Characters with which the two would be equal."""
    more_size: float
    """Nats that twice the parameters would gain."""
    more_data: float
    """Nats that twice the data would gain."""

    @property
    def starved(self) -> bool:
        """Whether data is what it wants."""
        return self.more_data > self.more_size


@dataclass(frozen=True)
class ScalingResult:
    """What came of the study."""

    device: str
    runs: list[StudyRun]
    cells: list[Cell]
    """The best run of each size on each amount of data."""
    sum: FittedLaw
    """With p of 1: what is missing adds up."""
    free: FittedLaw
    """With p as it fits."""
    sizes: list[Bottleneck]
    """By the latter."""
    curves: list[tuple[int, Curve]]
    """Of the best run of each size on all the data, with its parameters."""
    frontier: list[tuple[float, float, int]]
    """(operations, lowest loss with so many, parameters of the model that has it)."""
    takeovers: list[tuple[float, float]]
    """(operations, parameters) where a size gets ahead of the next smaller one while that is still
    trained; the parameters are the geometric mean of both."""
    exponent: float | None
    """a, where the best size grows like operations^a: the slope through the takeovers."""


def analyse_trials(trials: Sequence[Trial], bootstraps: int = 300) -> ScalingResult:
    """What runs of a grid say."""
    grid = select_cells(trials)
    most = max(cell.D for cell in grid)
    free = fit_grid(grid, True, bootstraps)
    law = free.law
    best = {cell.run for cell in grid if most == cell.D}
    curves = [(t.parameters, make_curve(t)) for t in trials if t.config.name in best]
    curves.sort()
    ahead = find_takeovers(curves)
    return ScalingResult(
        device=trials[0].device,
        runs=[StudyRun.from_trial(trial) for trial in trials],
        cells=grid,
        sum=fit_grid(grid, False, bootstraps),
        free=free,
        sizes=[
            Bottleneck(
                N=n,
                of_size=law.size_term(n),
                of_data=law.data_term(most),
                enough=law.balanced_data(n),
                more_size=law.loss(n, most) - law.loss(2 * n, most),
                more_data=law.loss(n, most) - law.loss(n, 2 * most),
            )
            for n in sorted({cell.N for cell in grid})
        ],
        curves=curves,
        frontier=find_frontier(curves),
        takeovers=ahead,
        exponent=fit_exponent(ahead),
    )


def fit_grid(grid: Sequence[Cell], free: bool, bootstraps: int) -> FittedLaw:
    """The law that a grid follows, with p free or 1."""

    def numbers(some: Sequence[Cell]) -> tuple[list[float], list[float], list[float]]:
        return [c.N for c in some], [c.D for c in some], [c.loss for c in some]

    law = fit(*numbers(grid), free)
    errors = [law.loss(cell.N, cell.D) / cell.loss - 1 for cell in grid]
    largest = max(cell.N for cell in grid)
    known = fit(*numbers([cell for cell in grid if largest > cell.N]), free)
    return FittedLaw(
        law=law,
        bounds=bootstrap(*numbers(grid), law, bootstraps, free),
        error=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        largest_error=max(map(abs, errors)),
        held_out=[(c.D, c.loss, known.loss(c.N, c.D)) for c in grid if largest == c.N],
    )


def make_curve(trial: Trial) -> Curve:
    """How the loss fell in a run."""
    each_token = flops_per_token(build(trial.config.model))
    return [(float(each_token) * point.tokens, point.loss) for point in trial.points]


def find_frontier(curves: Sequence[tuple[int, Curve]]) -> list[tuple[float, float, int]]:
    """(operations, loss, N) of all evaluations that no run had reached with fewer operations."""
    points = sorted((C, loss, N) for N, curve in curves for C, loss in curve)
    found: list[tuple[float, float, int]] = []
    for point in points:
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def find_takeovers(curves: Sequence[tuple[int, Curve]]) -> list[tuple[float, float]]:
    """(operations, parameters) where a size gets ahead of the next smaller one.

    Only where both are trained then: past its last step a size cannot be ahead any more.
    """
    found = []
    for (small, one), (large, other) in pairwise(curves):
        (x, losses), (y, theirs) = (np.array(curve).T for curve in (one, other))
        both = np.union1d(np.log(x), np.log(y))
        both = both[(both >= np.log(y[0])) & (both <= np.log(x[-1]))]
        behind = np.interp(both, np.log(y), theirs) - np.interp(both, np.log(x), losses)
        ahead = np.flatnonzero(behind < 0)
        if len(ahead) and (i := ahead[0]):
            share = behind[i - 1] / (behind[i - 1] - behind[i])
            at = both[i - 1] + share * (both[i] - both[i - 1])
            found.append((float(np.exp(at)), math.sqrt(small * large)))
    return found


def fit_exponent(ahead: Sequence[tuple[float, float]]) -> float | None:
    """The slope of log N over log operations, if there are two places to lay it through."""
    if len(ahead) < 2:
        return None
    operations, sizes = zip(*ahead, strict=True)
    return float(np.polyfit(np.log(operations), np.log(sizes), 1)[0])


def select_cells(trials: Sequence[Trial]) -> list[Cell]:
    """The grid: of the runs of each size and amount of data, the best."""
    by_cell: dict[tuple[int, int], list[Trial]] = {}
    for each in trials:
        by_cell.setdefault((each.parameters, each.train_tokens), []).append(each)
    found = []
    for (N, D), several in sorted(by_cell.items()):
        trial = min(several, key=lambda trial: trial.val_loss)
        best, model = StudyRun.from_trial(trial), trial.config.model
        assert isinstance(model, ModernConfig)
        found.append(
            Cell(
                n_layer=model.n_layer,
                n_head=model.n_head,
                n_embd=model.n_embd,
                N=N,
                D=D,
                loss=best.loss,
                run=best.name,
                compute=float(flops_per_token(build(model))) * best.tokens,
                seconds=round(sum(trial.seconds for trial in several), 3),
                falling=best.falling,
            )
        )
    return found


def format_tables(found: ScalingResult) -> str:
    """The study in Markdown: losses, the law, who is starved."""
    amounts = sorted({cell.D for cell in found.cells})
    by_cell = {(cell.N, cell.D): cell for cell in found.cells}
    lines = [
        "| parameters | " + " | ".join(f"{D:,} characters" for D in amounts) + " |",
        "| --- |" + " --- |" * len(amounts),
    ]
    for size in found.sizes:
        losses = [by_cell.get((size.N, D)) for D in amounts]
        shown = " | ".join(
            f"{cell.loss:.4f}{'*' if cell.falling else ''}" if cell else "" for cell in losses
        )
        lines.append(f"| {size.N:,} | {shown} |")
    lines += ["", "\\* still falling when the steps were used up.", ""]
    lines += ["| | p of 1: a sum | 95% | p free | 95% |", "| --- | --- | --- | --- | --- |"]
    for name, sign in zip(("E", "A", "alpha", "B", "beta", "p"), "EAαBβp", strict=True):
        shown = " | ".join(_format_value(one, name) for one in (found.sum, found.free))
        lines.append(f"| {sign} | {shown} |")
    lines += [
        f"| error | {found.sum.error:.2%} | | {found.free.error:.2%} | |",
        f"| largest | {found.sum.largest_error:.2%} | | {found.free.largest_error:.2%} | |",
        "",
        "| parameters | A / N^α | B / D^β, all text | text where equal "
        "| twice the parameters gain | twice the text gains | wants |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in found.sizes:
        wants = "text" if size.starved else "parameters"
        lines.append(
            f"| {size.N:,} | {size.of_size:.3f} | {size.of_data:.3f} | {size.enough:,.0f} "
            f"| {size.more_size:.4f} | {size.more_data:.4f} | {wants} |"
        )
    lines += [
        "",
        "| text | the largest size, measured | predicted from the smaller, a sum | p free |",
        "| --- | --- | --- | --- |",
    ]
    for (D, L, a), (*_, b) in zip(found.sum.held_out, found.free.held_out, strict=True):
        lines.append(f"| {D:,} | {L:.4f} | {a:.4f} | {b:.4f} |")
    if found.exponent is not None:
        grow = f"parameters grow like operations^{found.exponent:.2f}"
        lines += ["", f"Where a size gets ahead of the next smaller one, {grow}."]
    lines += ["", f"{found.device}."]
    return "\n".join(lines) + "\n"


def _format_value(fitted: FittedLaw, name: str) -> str:
    """A number of a law, and its interval if it was fitted, as two cells of a table."""
    value = f"{getattr(fitted.law, name):.3g}"
    if name not in fitted.bounds:
        return f"{value} |"
    low, high = fitted.bounds[name]
    return f"{value} | {low:.3g} to {high:.3g}"
