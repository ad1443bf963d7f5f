"""Shows the progress of a run: a line for each evaluation and, in a terminal, a live line."""

from functools import partial
from typing import Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import make_line
from ..models import flops_per_token
from ..runs.checkpoint import Best
from ..runs.journal import Record
from ..runs.reporter import Reporter
from ..runs.run import Run
from ..system import distributed
from ..system.devices import describe_device, find_peak_flops
from ..text.tokenizers import CharTokenizer, describe_lost_text
from ..train import Result
from .progress import NO_BITS, Bar, duration, make_live_line


class LiveReporter(Reporter):
    """Shows one live line for the current run; the caller prints the results of each run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(console)
        self.progress = make_live_line(console)
        self.task = self.progress.add_task("")
        self.run: Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.progress.stop()
        self.progress.stop()
        self.run = None

    def preparing(self, what: str, done: int, total: int) -> None:
        self.bar.update(what, done, total)

    def started(self, run: Run) -> None:
        self.bar.progress.stop()
        self.run = run
        self.progress.reset(self.task, total=run.config.train.steps)
        self.progress.start()

    def recorded(self, record: Record, best: Best | None) -> None:
        assert self.run is not None
        steps = self.run.config.train.steps
        text = f"{make_line(self.run.config.name)}  step {record.step:,}/{steps:,}"
        if record.train_loss is not None:
            text += f"  loss {record.train_loss:.4f}  {self._format_time_left(record)}"
        self.progress.update(self.task, completed=record.step, description=text)
        if record.step == steps:
            self.progress.stop()

    def _format_time_left(self, record: Record) -> str:
        assert self.run is not None
        steps = self.run.config.train.steps
        seconds = record.seconds / record.step * (steps - record.step) if record.step else 0.0
        return f"{duration(seconds)} left"


class TerminalReporter(LiveReporter):
    """Prints a line for each evaluation, and shows a live line below these lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.previous: Record | None = None
        self.peak_fraction: float | None = None
        """Fraction of the peak FLOP/s of all devices that training uses at one token per second;
        None if the peak is unknown."""

    def started(self, run: Run) -> None:
        self.bar.progress.stop()
        self.run = run
        if peak := find_peak_flops(run.device, run.precision):
            self.peak_fraction = flops_per_token(run.model) / (peak * distributed.size())
        splits, model = run.data.splits, run.model.config
        print_line = partial(self.console.print, soft_wrap=True)
        print_line(make_line(run.out), style="bold", end="")
        print_line(
            f": {type(run.config.model).__name__.removesuffix('Config')}, "
            f"{run.parameters:,} parameters, block size {model.block_size}; "
            f"{describe_device(run.device)}, {run.precision_name}"
        )
        print_line(
            f"{make_line(run.config.data)}: {len(splits['train'].tokens):,} training tokens, "
            f"{len(splits['val'].tokens):,} validation tokens, "
            f"vocabulary {run.tokenizer.vocab_size:,}"
        )
        print_line(
            f"bigram baseline: validation loss {run.bigram_loss:.4f}"
            f"{self._format_bits(run.bigram_loss)}"
        )
        if lost := max(split.lost for split in splits.values()):
            self.said(f"{describe_lost_text(lost)} {NO_BITS}")
        if run.state.step:
            print_line(f"resuming from step {run.state.step:,}")
        super().started(run)

    def recorded(self, record: Record, best: Best | None) -> None:
        assert self.run is not None
        speed = f"{self._format_rate(record)}  {self._format_time_left(record)}"
        if record.val_loss is not None:
            train = f"{record.train_loss:7.4f}" if record.train_loss is not None else "      –"
            line = Text(f"step {record.step:>6,}  train {train}  val {record.val_loss:7.4f}")
            line += self._format_bits(record.val_loss)
            if record.ema_val_loss is not None:
                line += f"  averaged {record.ema_val_loss:7.4f}"
                line += self._format_bits(record.ema_val_loss)
            line.append(*("  best", "bold") if best and record.step == best.step else ("      ",))
            if not self.console.is_terminal and record.step:
                line += f"  {speed}"
            self.console.print(line, soft_wrap=True)
        if record.train_loss is not None:
            steps = self.run.config.train.steps
            text = f"step {record.step:,}/{steps:,}  loss {record.train_loss:.4f}  "
            text += f"best {best.val_loss:.4f}  " if best else ""
            self.progress.update(self.task, completed=record.step, description=text + speed)

    def _format_bits(self, loss: float) -> str:
        """Format a loss in bits per byte; "" for a CharTokenizer, or if the value is unknown."""
        assert self.run is not None
        bits = self.run.data.splits["val"].bits_per_byte(loss)
        if isinstance(self.run.tokenizer, CharTokenizer) or bits is None:
            return ""
        return f" ({bits:.4f} bits/byte)"

    def _format_rate(self, record: Record) -> str:
        """Format tokens per second since the last record; at an evaluation, since the run began."""
        previous, self.previous = self.previous, record
        if previous is None or record.val_loss is not None or record.seconds <= previous.seconds:
            rate = record.tokens / record.seconds if record.seconds else 0.0
        else:
            rate = (record.tokens - previous.tokens) / (record.seconds - previous.seconds)
        text = f"{rate:,.0f} tokens/s"
        return text + (f", MFU {self.peak_fraction * rate:.0%}" if self.peak_fraction else "")

    def said(self, line: str) -> None:
        self.console.print(line, style="yellow", soft_wrap=True)


def make_result_table(result: Result) -> Table:
    """Return a table of the losses and the time of a run that has ended."""
    run, best, last = result.run, result.best, result.last
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    losses = {"bigram baseline": run.bigram_loss}
    if run.smoothed_loss is not None:
        losses[describe_ngrams(run.smoothed_loss[0])] = run.smoothed_loss[1]
    rows = {
        "best validation loss": f"{best.val_loss:.4f} nats per token, at step {best.step:,}"
        + (", of the averaged weights" if best.averaged else ""),
        "bits per byte": "" if best.bits_per_byte is None else f"{best.bits_per_byte:.4f}",
        **{name: describe_loss(run, loss) for name, loss in losses.items()},
        "training": f"{duration(last.seconds)}, {last.tokens:,} tokens; ended: {result.ended}",
    }
    for name, value in rows.items():
        if not value:
            continue
        table.add_row(name, value, style="bold" if name.startswith("best") else "")
    return table


def describe_ngrams(n: int) -> str:
    """Return the name of the baseline in Run.smoothed_loss, such as "smoothed 5-grams"."""
    return f"smoothed {n}-grams"


def describe_loss(run: Run, loss: float) -> str:
    """Return a validation loss of this run in nats per token and, if known, bits per byte."""
    bits = run.data.splits["val"].bits_per_byte(loss)
    return f"{loss:.4f} nats per token" + ("" if bits is None else f", {bits:.4f} bits per byte")
