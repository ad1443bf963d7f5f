"""Draws loss.png, the losses of a run over its steps."""

import io
from collections.abc import Sequence
from pathlib import Path

from ..system.files import write_atomically

Points = Sequence[tuple[int, float]]
"""(step, value) pairs."""


def draw_loss(
    file: Path, train: Points, val: Points, averaged: Points, bigram_loss: float, title: str
) -> None:
    """Draw training and validation losses into a PNG file that is readable in black and white.

    averaged is the validation loss of the averaged weights.
    """
    # Imported here: the import takes as long as several training steps.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.1, top=0.93)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="0.6", linewidth=1, label="training batches")
    for points, color, marker, label in (
        (val, "tab:blue", "o", "validation"),
        (averaged, "tab:orange", "D", "validation, averaged weights"),
    ):
        if points:
            axes.plot(
                *zip(*points, strict=True), color=color, marker=marker, markersize=4, label=label
            )
    if val:
        best_step, best = min([*val, *averaged], key=lambda point: point[1])
        axes.annotate(
            f"best {best:.4f}\nstep {best_step}",
            (best_step, best),
            xytext=(0, 14),
            textcoords="offset points",
            ha="right" if best_step > val[-1][0] / 2 else "left",
        )
    axes.axhline(bigram_loss, color="black", linestyle=":", label=f"bigram {bigram_loss:.4f}")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(title, y=1, parse_math=False)  # without y, matplotlib measures all labels
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper right", edgecolor="none", framealpha=1)  # no curve there: losses fall
    png = io.BytesIO()
    figure.savefig(png, pil_kwargs={"compress_level": 1})
    write_atomically(file, png.getvalue())
