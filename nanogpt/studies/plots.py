"""The plots of the studies, as SVG files."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runs.plot import make_figure
from ..system.files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_ladder(file: Path, rungs: Sequence[tuple[str, float]]) -> None:
    """Plot the validation loss of each rung of the ladder study, with the first rung at the top."""
    figure = make_figure(7, 0.32 * len(rungs) + 0.9, "constrained")
    axes = figure.add_subplot()
    names, losses = zip(*rungs, strict=True)
    rows = range(len(rungs))
    axes.hlines(rows, 0, losses, color="0.7", linewidth=1, zorder=1)
    axes.scatter(losses, rows, color="black", s=24, zorder=2)
    for row, loss in zip(rows, losses, strict=True):
        axes.annotate(
            f"{loss:.3f}",
            (loss, row),
            (8, 0),
            textcoords="offset points",
            va="center",
            size=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    margin = 0.12 * (max(losses) - min(losses) or 1)
    axes.set_xlim(min(losses) - margin, max(losses) + margin)
    axes.set(xlabel="validation loss (nats per token)")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, file)


def draw_generations(file: Path, groups: Sequence[tuple[str, Sequence[float], float]]) -> None:
    """Plot the losses of the models of each group, and the loss of their ensemble."""
    figure = make_figure(7, 0.5 * len(groups) + 1.1, "constrained")
    axes = figure.add_subplot()
    for row, (_, losses, ensemble_loss) in enumerate(groups):
        models = axes.scatter(losses, [row] * len(losses), color="black", s=18, zorder=2)
        (together,) = axes.plot(ensemble_loss, row, "D", color="white", mec="black", zorder=2)
        axes.axhline(row, color="0.85", linewidth=1, zorder=1)
    models.set_label("one model")
    together.set_label("mean of the probabilities of the models in the row")
    axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    axes.invert_yaxis()
    axes.set(xlabel="validation loss (nats per token)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    _save(figure, file)


Measured = Sequence[tuple[float, float, float]]
"""(parameters, characters, loss) for each model size and amount of text."""
MARKERS = "os^Dv<>P*X"
PredictedLoss = Callable[[float, float], float]
"""A law: a function from (parameters, characters) to loss."""


def draw_fit(file: Path, measured: Measured, law: PredictedLoss) -> None:
    """Plot the loss against the model size.

    For each amount of text, a line shows the law, and markers show the measured losses.
    """
    figure = make_figure(7, 4.2, "constrained")
    axes = figure.add_subplot()
    amounts = sorted({D for _, D, _ in measured})
    for i, D in enumerate(amounts):
        points = sorted((N, loss) for N, d, loss in measured if d == D)
        sizes = [N for N, _ in points]
        grid = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / 50) for k in range(51)]
        grey = str(0.75 * (1 - i / max(1, len(amounts) - 1)))
        axes.plot(grid, [law(N, D) for N in grid], color=grey, linewidth=1)
        axes.plot(
            *zip(*points, strict=True),
            color=grey,
            linestyle="",
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=f"{D / 1e6:.2f} M characters",
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="validation loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, file)


def draw_residuals(file: Path, measured: Measured, law: PredictedLoss) -> None:
    """Plot the relative error of the law against the model size, for each amount of text."""
    figure = make_figure(7, 3, "constrained")
    axes = figure.add_subplot()
    amounts = sorted({D for _, D, _ in measured})
    for i, D in enumerate(amounts):
        points = sorted((N, 100 * (law(N, D) / loss - 1)) for N, d, loss in measured if d == D)
        grey = str(0.75 * (1 - i / max(1, len(amounts) - 1)))
        axes.plot(
            *zip(*points, strict=True),
            color=grey,
            linewidth=0.5,
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=f"{D / 1e6:.2f} M characters",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="parameters", ylabel="predicted / measured loss − 1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    _save(figure, file)


def draw_frontier(
    file: Path,
    curves: Mapping[int, Sequence[tuple[float, float]]],
    frontier: Sequence[tuple[float, float]],
) -> None:
    """Plot the loss against the number of floating-point operations in training.

    Each model size has a curve; `frontier` is the lowest loss for each number of operations.
    """
    figure = make_figure(7, 4.2, "constrained")
    axes = figure.add_subplot()
    for i, (N, curve) in enumerate(sorted(curves.items())):
        axes.plot(
            *zip(*curve, strict=True),
            color=str(0.7 * (1 - i / max(1, len(curves) - 1))),
            linewidth=1,
            marker=MARKERS[i % len(MARKERS)],
            markersize=3,
            label=f"{N:,} parameters",
        )
    axes.plot(
        *zip(*frontier, strict=True), color="black", linestyle=":", linewidth=2, label="frontier"
    )
    axes.set(xscale="log", xlabel="operations", ylabel="validation loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    _save(figure, file)


def _save(figure: "Figure", file: Path) -> None:
    """Write a figure to an SVG file; the same figure always gives the same bytes."""
    import matplotlib

    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "nanogpt"}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_output(file, buffer.getvalue())
