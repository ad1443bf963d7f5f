"""Curves, drawn without a screen."""

import io
from collections.abc import Sequence
from pathlib import Path

from .files import write_whole

Points = Sequence[tuple[int, float]]
"""(step, value) pairs."""


def draw_loss(file: Path, train: Points, val: Points, bigram_loss: float, title: str) -> None:
    """Draw the losses of a run over its steps into a PNG, readable in black and white."""
    # Imported when there is something to draw: it takes as long as several steps.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.1, top=0.93)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="0.6", linewidth=1, label="training batches")
    if val:
        steps, losses = zip(*val, strict=True)
        axes.plot(steps, losses, color="tab:blue", marker="o", markersize=4, label="validation")
        best_step, best = min(val, key=lambda point: point[1])
        axes.annotate(
            f"best {best:.4f}\nstep {best_step}",
            (best_step, best),
            xytext=(0, 14),
            textcoords="offset points",
            ha="right" if best_step > steps[-1] / 2 else "left",
        )
    axes.axhline(bigram_loss, color="black", linestyle=":", label=f"bigram {bigram_loss:.4f}")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper right")  # where no loss is
    png = io.BytesIO()
    figure.savefig(png)
    write_whole(file, png.getvalue())
