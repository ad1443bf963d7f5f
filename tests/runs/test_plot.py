"""The lines of the loss plot show the recorded losses."""

import io
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
from matplotlib.figure import Figure

from nanogpt.runs.plot import draw_loss


def test_the_lines_contain_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, file: io.BytesIO, **settings: Any) -> None:
        drawn.append(figure)
        save(figure, file, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    train, val = [(10, 3.0), (20, 2.0)], [(0, 4.0), (10, 2.5), (20, 2.75)]
    averaged = [(10, 2.4), (20, 2.625)]
    picture = draw_loss(train, val, averaged, 2.25, "a run")
    (axes,) = drawn[0].axes
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}  # type: ignore
    assert lines["training batches"] == [list(point) for point in train]
    assert lines["validation"] == [list(point) for point in val]
    assert lines["validation, averaged weights"] == [list(point) for point in averaged]
    assert [y for _, y in lines["bigram 2.2500"]] == [2.25, 2.25]
    assert axes.texts[0].get_text() == "best 2.4000\nstep 10"
    assert axes.get_ylabel() == "loss (nats per token)"
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 1000


def test_an_unknown_backend_does_not_matter() -> None:
    code = "from nanogpt.runs.plot import make_figure; print(make_figure(1, 1))"
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "title", ["文本 \U0001f600", "a\x1b\x07b", "two\nlines\u2028", "$\\frac$ %s"]
)
def test_a_title_causes_no_warning(title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_loss([(1, 2.0)], [(1, 2.0)], [], 2.25, title)
