"""The measurements of a run: metrics.jsonl, loss.png, and the best evaluation so far."""

import io
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import UserError, print_note
from ..system import distributed
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
    """Seconds of training, evaluations included."""
    lr: float
    """Learning rate of the next step."""
    train_loss: float | None = None
    """Mean loss since the previous line, in nats per token; None before the first step."""
    val_loss: float | None = None
    """Loss on the whole validation split, in nats per token; None without an evaluation."""
    bits_per_byte: float | None = None
    """val_loss in bits per byte of text."""
    ema_val_loss: float | None = None
    """val_loss of the averaged weights, in a run with weight averaging."""
    ema_bits_per_byte: float | None = None
    """ema_val_loss in bits per byte of text."""
    gradient_norm: float | None = None
    """Norm of the gradient of the last step, before clipping; None before the first step."""

    def best(self) -> Best | None:
        """Return the evaluation of the weights or of the averaged weights, whichever is better.

        The result is None if this record has no evaluation.
        """
        evaluations = [
            Best(self.step, loss, bits, averaged)
            for loss, bits, averaged in (
                (self.val_loss, self.bits_per_byte, False),
                (self.ema_val_loss, self.ema_bits_per_byte, True),
            )
            if loss is not None
        ]
        return min(evaluations, key=lambda best: best.val_loss, default=None)


MAX_LINE = 4096
"""Maximum bytes of a line in metrics.jsonl; the line of a record is many times shorter."""


class Journal:
    """The records of a run, in memory and in its directory."""

    def __init__(self, out: Path, title: str, bigram_loss: float) -> None:
        self.out, self.title, self.bigram_loss = out, title, bigram_loss
        self.writes = distributed.rank() == 0
        """If several processes train the model, only the first one writes."""
        self.records: list[Record] = []
        self.evaluations: list[Record] = []
        """The records with a validation loss."""
        self.best: Best | None = None
        self._file = out / "metrics.jsonl"
        self._drawn_records = -1
        self._drawn_at = time.perf_counter()
        self._drawing_seconds = 0.2  # a first guess; later, the time that the last plot took

    def begin(self) -> None:
        """Create an empty metrics.jsonl."""
        if self.writes:
            write_atomically(self._file, b"")

    def resume(self, lines: int, step: int, best: Best | None) -> None:
        """Read and keep the first `lines` lines of metrics.jsonl, and remove the later lines.

        Raises UserError if a line to keep is missing or damaged, or if its step is after `step`.
        """
        file, kept = require_regular_file(self.out, self._file), []
        with file.open("rb") if file.exists() else io.BytesIO() as opened:
            for number in range(lines):
                line = opened.readline(MAX_LINE)
                if not line.endswith(b"\n"):
                    raise damaged_error(
                        file, f"{number} lines, but the checkpoint was saved after line {lines}"
                    )
                try:
                    record = parse_dataclass(Record, parse_json(line, file), {})
                except UserError:
                    raise
                except ValueError as error:
                    raise damaged_error(file, error) from None
                if not 0 <= record.step <= step:
                    raise damaged_error(
                        file, f"a line for step {record.step}, but the checkpoint is at step {step}"
                    )
                kept.append(line)
                self._append(record)
        if self.writes:
            write_atomically(file, b"".join(kept))
        self.best = best

    def add(self, record: Record) -> bool:
        """Append a record to metrics.jsonl. Return whether its evaluation is the best so far."""
        if self.writes:
            line = {name: value for name, value in asdict(record).items() if value is not None}
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")
        self._append(record)
        best = record.best()
        if best is None or (self.best is not None and self.best.val_loss <= best.val_loss):
            return False
        self.best = best
        return True

    def _append(self, record: Record) -> None:
        self.records.append(record)
        if record.val_loss is not None:
            self.evaluations.append(record)

    def flush(self) -> None:
        """Wait until metrics.jsonl is on the disk."""
        if self.records and self.writes:
            sync_to_disk(self._file)

    def draw_if_due(self) -> None:
        """Update loss.png, unless drawing would take more than about 2% of the time of the run."""
        if time.perf_counter() - self._drawn_at > 50 * self._drawing_seconds:
            self.draw()

    def draw(self) -> None:
        """Update loss.png if there are new records; print a note if matplotlib cannot draw it."""
        if self._drawn_records == len(self.records) or not self.writes:
            return
        start, self._drawn_records = time.perf_counter(), len(self.records)
        train = [(r.step, r.train_loss) for r in self.records if r.train_loss is not None]
        val = [(r.step, r.val_loss) for r in self.evaluations if r.val_loss is not None]
        averaged = [
            (r.step, r.ema_val_loss) for r in self.evaluations if r.ema_val_loss is not None
        ]
        try:
            picture = draw_loss(train, val, averaged, self.bigram_loss, self.title)
        except Exception as error:  # such as MemoryError: training continues without the plot
            print_note(f"loss.png is not drawn: {str(error) or 'out of memory'}")
        else:
            with suppress(PermissionError):  # Windows cannot replace an open file
                write_atomically(self.out / "loss.png", picture)
        self._drawn_at = time.perf_counter()
        self._drawing_seconds = self._drawn_at - start


OVERFITTING = (
    "Training loss keeps falling while validation loss rises: the model overfits and memorises the "
    "training text. More text, more dropout or a smaller model would help."
)


def is_overfitting(records: Sequence[Record]) -> bool:
    """Return whether training loss fell and validation loss rose over the last three evaluations.

    The training loss is averaged between evaluations, because single batches are too noisy.
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
    train_falls = all(later < earlier for earlier, later in pairwise(train[-3:]))
    val_rises = all(later > earlier for earlier, later in pairwise(val[-3:]))
    return len(val) >= 3 and train_falls and val_rises
