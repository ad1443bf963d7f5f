"""Curves, drawn without a screen."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_ladder(file: Path, rungs: Sequence[tuple[str, float]]) -> None:
    """Draw the validation loss of each rung, one below the other, into an SVG."""
    figure = _figure(7, 0.32 * len(rungs) + 0.9)
    axes = figure.add_subplot()
    names, losses = zip(*rungs, strict=True)
    places = range(len(rungs))
    axes.plot(losses, places, color="0.7", linewidth=1, zorder=1)
    axes.scatter(losses, places, color="black", s=24, zorder=2)
    for place, loss in zip(places, losses, strict=True):
        axes.annotate(
            f"{loss:.3f}",
            (loss, place),
            (8, 0),
            textcoords="offset points",
            va="center",
            size=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="validation loss (nats per token)")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, file)


Measured = Sequence[tuple[float, float, float]]
"""(parameters, data, loss) of runs."""
MARKERS = "os^Dv<>P*X"
PredictedLoss = Callable[[float, float], float]
"""The loss of so many parameters on so much data."""


def draw_fit(file: Path, measured: Measured, law: PredictedLoss) -> None:
    """Draw losses over parameters, for each amount of data, and the law as lines, into an SVG."""
    figure = _figure(7, 4.2)
    axes = figure.add_subplot()
    amounts = sorted({D for _, D, _ in measured})
    for i, D in enumerate(amounts):
        points = sorted((N, loss) for N, d, loss in measured if d == D)
        sizes = [N for N, _ in points]
        steps = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / 50) for k in range(51)]
        grey = str(0.75 * (1 - i / max(1, len(amounts) - 1)))
        axes.plot(steps, [law(N, D) for N in steps], color=grey, linewidth=1)
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
    """Draw by how much the law is off, over parameters, for each amount of data, into an SVG."""
    figure = _figure(7, 3)
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
    axes.set(xscale="log", xlabel="parameters", ylabel="law over measured loss (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    _save(figure, file)


def draw_frontier(
    file: Path,
    curves: Mapping[int, Sequence[tuple[float, float]]],
    frontier: Sequence[tuple[float, float]],
) -> None:
    """Draw losses over operations, a curve for each size, and what none is below, into an SVG."""
    figure = _figure(7, 4.2)
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


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, width by height inches, drawn without a screen."""
    # Imported when there is something to draw: it takes as long as several steps.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", file: Path) -> None:
    """Write a figure as SVG, the same bytes every time."""
    import matplotlib

    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    drawn = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "nanogpt"}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure.savefig(
            drawn,
            format=file.suffix[1:],
            metadata={"Date": None} if file.suffix == ".svg" else None,
        )
    write_atomically(file, drawn.getvalue())
