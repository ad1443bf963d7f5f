"""What a run measures as it goes: metrics.jsonl, loss.png, the best step so far."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from .plots import draw_loss


@dataclass(frozen=True)
class Record:
    """A line of metrics.jsonl."""

    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Since the training began, evaluations included."""
    lr: float
    """Learning rate of the next step."""
    train_loss: float | None
    """Nats per token, mean over the batches since the last line; None before the first step."""
    val_loss: float | None = None
    """Nats per token over the whole validation split, where it was measured."""
    bits_per_byte: float | None = None
    """The same in bits per byte of text."""


class Journal:
    """The records of a run, in memory and in its directory."""

    def __init__(self, out: Path, title: str, bigram_loss: float) -> None:
        self.out, self.title, self.bigram_loss = out, title, bigram_loss
        self.records: list[Record] = []
        self.evaluations: list[Record] = []  # those in which the validation loss was measured
        self._drawn_at = self._drawing_took = 0.0

    @property
    def best(self) -> Record:
        """The evaluation with the lowest validation loss, the first of equals."""
        return min(self.evaluations, key=lambda record: record.val_loss or math.inf)

    def add(self, record: Record) -> None:
        """Append a record to metrics.jsonl, and redraw the curve when it is an evaluation."""
        self.records.append(record)
        line = {name: value for name, value in asdict(record).items() if value is not None}
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if record.val_loss is not None:
            self.evaluations.append(record)
            # A drawing takes as long as a few steps of a small model: at most 2% of the time.
            if time.perf_counter() - self._drawn_at > 50 * self._drawing_took:
                self.draw()

    def draw(self) -> None:
        """Draw both losses so far into loss.png."""
        began = time.perf_counter()
        train = [(r.step, r.train_loss) for r in self.records if r.train_loss is not None]
        val = [(r.step, r.val_loss) for r in self.evaluations if r.val_loss is not None]
        draw_loss(self.out / "loss.png", train, val, self.bigram_loss, self.title)
        self._drawn_at = time.perf_counter()
        self._drawing_took = self._drawn_at - began


def overfits(records: Sequence[Record]) -> bool:
    """Whether, over the last three evaluations, training loss fell and validation loss rose.

    Training loss means its mean between two evaluations: single batches are too noisy.
    """
    train: list[float] = []
    val: list[float] = []
    batches: list[float] = []
    for record in records:
        if record.train_loss is not None:
            batches.append(record.train_loss)
        if record.val_loss is not None and batches:
            train.append(sum(batches) / len(batches))
            val.append(record.val_loss)
            batches = []
    falls = all(later < earlier for earlier, later in pairwise(train[-3:]))
    rises = all(later > earlier for earlier, later in pairwise(val[-3:]))
    return len(val) >= 3 and falls and rises
