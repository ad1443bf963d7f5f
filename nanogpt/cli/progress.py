"""A live line for what takes longer than a moment."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3:07 min or 1:02:03 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{s:02} h"
    return f"{minutes}:{s:02} min" if minutes else f"{s} s"


def _live_line(console: Console) -> Progress:
    """A bar with a text, gone at the end; nothing where the output is no terminal."""
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class Bar:
    """How far it is with a large text: a live line, gone when all is done."""

    def __init__(self, console: Console) -> None:
        self.progress = _live_line(console)
        self.task = self.progress.add_task("", total=None)
        self.what = ""
        self.made = self.began = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """A corpora.Progress."""
        now = time.monotonic()
        if what != self.what:
            self.progress.remove_task(self.task)
            self.task = self.progress.add_task("", total=total or None)
            self.what, self.began = what, now
        done = min(done, total or done)
        rate = done / max(1e-3, now - self.began)
        text = escape(what)
        if done:
            of_all = f" of {total / 1e6:,.0f}" if total else ""
            text += f"  {done / 1e6:,.0f}{of_all} MB  {rate / 1e6:,.1f} MB/s"
        if done and total:
            text += f"  {duration((total - done) / rate)} left"
        self.progress.update(self.task, completed=done, description=text)
        if now - self.made > 0.5:  # what is short needs no bar
            self.progress.start()
