"""What a run measures as it goes: metrics.jsonl, loss.png, the best step so far."""

import io
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import UserError
from ..system.files import (
    damaged_error,
    parse_json,
    require_regular_file,
    sync_to_disk,
    write_atomically,
)
from ..system.schema import parse_dataclass
from .checkpoint import Best
from .plot import draw_loss


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
    train_loss: float | None = None
    """Nats per token, mean over the batches since the last line; None before the first step."""
    val_loss: float | None = None
    """Nats per token over the whole validation split, where it was measured."""
    bits_per_byte: float | None = None
    """The same in bits per byte of text."""
    ema_val_loss: float | None = None
    """That of the running mean of the weights, in a run that makes one."""
    ema_bits_per_byte: float | None = None

    def best(self) -> Best | None:
        """The lower of the losses measured here."""
        found = [
            Best(self.step, loss, bits, averaged)
            for loss, bits, averaged in (
                (self.val_loss, self.bits_per_byte, False),
                (self.ema_val_loss, self.ema_bits_per_byte, True),
            )
            if loss is not None and bits is not None
        ]
        return min(found, key=lambda best: best.val_loss, default=None)


LONGEST_LINE = 4096
"""Bytes: many times what a record takes."""


class Journal:
    """The records of a run, in memory and in its directory."""

    def __init__(self, out: Path, title: str, bigram_loss: float) -> None:
        self.out, self.title, self.bigram_loss = out, title, bigram_loss
        self.records: list[Record] = []
        self.evaluations: list[Record] = []  # those in which the validation loss was measured
        self.best: Best | None = None
        self._file = out / "metrics.jsonl"
        self._drawn = -1  # records in loss.png
        self._drawn_at, self._drawing_took = time.perf_counter(), 0.2  # so the first after 10 s

    def begin(self) -> None:
        """Begin with an empty metrics.jsonl."""
        write_atomically(self._file, b"")

    def resume(self, lines: int, step: int, best: Best | None) -> None:
        """Go on after the first lines of metrics.jsonl, of steps up to one; the others are dropped.

        Raises UserError where they are not there.
        """
        file, kept = require_regular_file(self.out, self._file), []
        with file.open("rb") if file.exists() else io.BytesIO() as opened:
            for _ in range(lines):
                kept.append(opened.readline(LONGEST_LINE))
                if not kept[-1].endswith(b"\n"):
                    raise damaged_error(
                        file, f"{len(kept) - 1} lines, and the checkpoint was made after {lines}"
                    )
                try:
                    record = parse_dataclass(Record, parse_json(kept[-1], file), {})
                except ValueError as error:
                    raise (
                        error if isinstance(error, UserError) else damaged_error(file, error)
                    ) from None
                if not 0 <= record.step <= step:
                    raise damaged_error(file, f"a line of step {record.step} before step {step}")
                self._remember(record)
        write_atomically(file, b"".join(kept))
        self.best = best

    def add(self, record: Record) -> bool:
        """Append a record to metrics.jsonl; says whether it has a new lowest validation loss."""
        line = {name: value for name, value in asdict(record).items() if value is not None}
        with self._file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
        self._remember(record)
        best = record.best()
        if best is None or (self.best is not None and self.best.val_loss <= best.val_loss):
            return False
        self.best = best
        return True

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        if record.val_loss is not None:
            self.evaluations.append(record)

    def flush(self) -> None:
        """Wait until metrics.jsonl is on the disk."""
        if self.records:
            sync_to_disk(self._file)

    def draw_if_due(self) -> None:
        """Draw what is new, if that takes no more than 2% of the time."""
        if time.perf_counter() - self._drawn_at > 50 * self._drawing_took:
            self.draw()

    def draw(self) -> None:
        """Draw both losses so far into loss.png, if there are more than the last time."""
        if self._drawn == len(self.records):
            return
        began, self._drawn = time.perf_counter(), len(self.records)
        train = [(r.step, r.train_loss) for r in self.records if r.train_loss is not None]
        val = [(r.step, r.val_loss) for r in self.evaluations if r.val_loss is not None]
        averaged = [
            (r.step, r.ema_val_loss) for r in self.evaluations if r.ema_val_loss is not None
        ]
        with suppress(PermissionError):  # on Windows, a program that shows the file
            draw_loss(self.out / "loss.png", train, val, averaged, self.bigram_loss, self.title)
        self._drawn_at = time.perf_counter()
        self._drawing_took = self._drawn_at - began


def is_overfitting(records: Sequence[Record]) -> bool:
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
