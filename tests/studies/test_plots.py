"""Each plot of a study shows all its data, and the same data give the same file."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.studies.plots import draw_fit, draw_frontier, draw_ladder, draw_residuals

CELLS = [(N, D, 1 + 1e3 / N + 1e4 / D) for N in (1e4, 1e5, 1e6) for D in (1e5, 1e6)]
CURVES = {10_000: [(1e9, 3.0), (2e9, 2.5)], 100_000: [(2e9, 2.8), (8e9, 2.0), (16e9, 1.9)]}


def law(N: float, D: float) -> float:
    return 1.01 * (1 + 1e3 / N + 1e4 / D)


PLOTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "ladder": (
        lambda file: draw_ladder(file, [("unigram", 3.25), ("bigram", 2.5)]),
        ["unigram", "bigram", "3.250", "2.500", "validation loss (nats per token)"],
    ),
    "fit": (
        lambda file: draw_fit(file, CELLS, law),
        ["0.10 M characters", "1.00 M characters", "parameters"],
    ),
    "residuals": (
        lambda file: draw_residuals(file, CELLS, law),
        ["0.10 M characters", "1.00 M characters", "predicted / measured loss − 1 (%)"],
    ),
    "frontier": (
        lambda file: draw_frontier(file, CURVES, [(1e9, 3.0), (2e9, 2.5), (8e9, 2.0)]),
        ["10,000 parameters", "100,000 parameters", "frontier", "operations"],
    ),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plot_is_labelled_and_reproducible(name: str) -> None:
    draw, labels = PLOTS[name]
    first, second = Path("first.svg"), Path("second.svg")
    draw(first)
    draw(second)
    assert first.read_bytes() == second.read_bytes()
    svg = first.read_text("utf-8")
    assert all(f">{label}<" in svg for label in labels)


def test_fit_has_a_marker_for_each_cell() -> None:
    draw_fit(Path("fit.svg"), CELLS, law)
    axes = Path("fit.svg").read_text("utf-8").partition('<g id="legend_1">')[0]
    markers = re.findall(r"<g clip-path=[^>]*>\s*((?:<use [^>]*>\s*)+)</g>", axes)
    assert sum(group.count("<use ") for group in markers) == len(CELLS)
