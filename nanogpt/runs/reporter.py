"""The interface through which a run reports its progress."""

from .checkpoint import Best
from .journal import Record
from .run import Run


class Reporter:
    """Receives the progress of a run; this base class ignores it."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Called during the task `what`, such as "reading a.txt", after `done` of `total` bytes.

        `total` is 0 if it is unknown.
        """

    def started(self, run: Run) -> None:
        """Called once, before the first step."""

    def recorded(self, record: Record, best: Best | None) -> None:
        """Called for each new line of metrics.jsonl.

        `best` is the best evaluation so far; None before the first evaluation.
        """

    def said(self, line: str) -> None:
        """Called with a message for the user."""
