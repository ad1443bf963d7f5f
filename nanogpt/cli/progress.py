"""The console of a command, and live lines in it that show the progress of a long task."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from ..errors import escape_control, make_line

NO_BITS = "Bits per byte are not shown, because the lost bytes would make them too low."


class PlainConsole(Console):
    """A console that does not interpret markup or emoji codes in strings.

    The name of a file or run may contain [bold], :cat: or control characters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as a Text; control characters are escaped."""
        return super().render_str(escape_control(text), **options)


def duration(seconds: float) -> str:
    """Format seconds as 42 s, 3:07 min or 1:02:03 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{s:02} h"
    return f"{minutes}:{s:02} min" if minutes else f"{s} s"


def make_live_line(console: Console) -> Progress:
    """Make a progress bar with a text. It shows nothing if the output is not a terminal."""
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class Bar:
    """Shows the progress of reading or encoding a text if this takes more than half a second."""

    def __init__(self, console: Console) -> None:
        self.progress = make_live_line(console)
        self.task = self.progress.add_task("", total=None)
        self.activity = ""
        self.created = self.activity_started = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, activity: str, done: int, total: int) -> None:
        """Show the task `activity` and the bytes done; `total` is 0 if the total is unknown."""
        now = time.monotonic()
        if activity != self.activity:
            self.progress.remove_task(self.task)
            self.task = self.progress.add_task("", total=total or None)
            self.activity, self.activity_started = activity, now
        done = min(done, total or done)
        rate = done / max(1e-3, now - self.activity_started)
        text = make_line(activity)
        if done:
            of_total = f" of {total / 1e6:,.0f}" if total else ""
            text += f"  {done / 1e6:,.0f}{of_total} MB  {rate / 1e6:,.1f} MB/s"
        if done and total:
            text += f"  {duration((total - done) / rate)} left"
        self.progress.update(self.task, completed=done, description=text)
        if now - self.created > 0.5:
            self.progress.start()
