"""Draws loss.png, a plot of the losses of a run against its steps."""

import io
import logging
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
"""(step, value) pairs."""


def make_figure(
    width: float, height: float, layout: Literal["constrained"] | None = None
) -> "Figure":
    """Return an empty figure of `width` by `height` inches; drawing it needs no display.

    Importing matplotlib takes as long as several training steps, so it is imported only when a
    figure is needed. The import fails if the environment variable MPLBACKEND names an unknown
    backend, so this function removes the variable during the import.
    """
    logging.getLogger("matplotlib").setLevel("ERROR")  # hides a warning about a read-only cache
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw_loss(
    train: Points, val: Points, averaged: Points, bigram_loss: float, title: str
) -> bytes:
    """Draw training and validation losses as a PNG image that is readable in black and white.

    `averaged` contains the validation losses of the averaged weights.
    """
    figure = make_figure(8, 5)
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
    # A fixed y saves time: without it, matplotlib measures all labels to place the title.
    axes.set_title(title, y=1, parse_math=False)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Losses usually fall, so the upper right corner is usually empty.
    axes.legend(loc="upper right", edgecolor="none", framealpha=1)
    png = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # the font may lack characters of the title
        figure.savefig(png, pil_kwargs={"compress_level": 1})
    return png.getvalue()
