"""Progress bars, and durations with units."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from nanogpt.cli.progress import Bar, PlainConsole, duration
from nanogpt.errors import escape_control


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (3723, "1:02:03 h")],
)
def test_durations_have_a_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_bar_shows_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    screen = io.StringIO()
    with Bar(Console(file=screen, width=100, force_terminal=True)) as bar:
        bar.created -= 1  # as if a second had passed, because a bar appears after half a second
        bar.update("reading a.txt", 3_000_000, 0)
        bar.progress.refresh()
        bar.activity_started -= 2
        bar.update("reading a.txt", 8_000_000, 0)
        bar.progress.refresh()
        bar.update("encoding [b]", 1_000_000, 4_000_000)
        bar.activity_started -= 1
        bar.update("encoding [b]", 2_000_000, 4_000_000)
        bar.progress.refresh()
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert "reading a.txt  8 MB  4.0 MB/s" in text
    assert "encoding [b]  2 of 4 MB  2.0 MB/s  1 s left" in text
    assert text.count("\x1b[2K") > 1


def test_short_work_shows_no_bar() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=100, force_terminal=True)) as bar:
        bar.update("reading a.txt", 3_000_000, 0)
    assert screen.getvalue() == ""


@given(st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Mn"]), max_size=30))
@example("[bold]a[/] :cat: [/red]")
@example("\x1b[2J\udcff\u2028")
def test_a_console_interprets_no_markup_in_names(name: str) -> None:
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=1000)
    console.print(name, soft_wrap=True)
    assert screen.getvalue() == escape_control(name) + "\n"
