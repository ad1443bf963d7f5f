"""How a run looks in a terminal, or line by line where the output is no terminal."""

from functools import partial
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..models import flops_per_token
from ..runs.checkpoint import Best
from ..runs.journal import Record
from ..runs.run import Run
from ..system.devices import describe_device, find_peak_flops
from ..text.tokenizers import CharTokenizer
from ..train import Reporter, Result
from .progress import Bar, _live_line, duration


class LiveReporter(Reporter):
    """A live line, for one run after the other; what they came to is told elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(console)
        self.progress = _live_line(console)
        self.task = self.progress.add_task("")
        self.run: Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.progress.stop()
        self.progress.stop()

    def preparing(self, what: str, done: int, total: int) -> None:
        self.bar.tell(what, done, total)

    def started(self, run: Run) -> None:
        self.bar.progress.stop()
        self.run = run
        self.progress.reset(self.task, total=run.config.train.steps)
        self.progress.start()

    def recorded(self, record: Record, best: Best | None) -> None:
        assert self.run is not None
        steps = self.run.config.train.steps
        left = record.seconds / record.step * (steps - record.step) if record.step else 0.0
        text = f"{self.run.config.name}  step {record.step:,}/{steps:,}"
        if record.train_loss is not None:
            text += f"  loss {record.train_loss:.4f}  {duration(left)} left"
        self.progress.update(self.task, completed=record.step, description=text)
        if record.step == steps:
            self.progress.stop()


class TerminalReporter(LiveReporter):
    """A line for each evaluation, and below them a live one."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.previous: Record | None = None
        self.mfu: float | None = None
        """Of a token a second: the part of the device's peak that it takes, where that is known."""

    def started(self, run: Run) -> None:
        self.bar.progress.stop()
        self.run = run
        if peak := find_peak_flops(run.device, run.precision):
            self.mfu = flops_per_token(run.model) / peak
        data, model = run.data.splits, run.model.config
        precision = str(run.precision).removeprefix("torch.")
        say = partial(self.console.print, soft_wrap=True)
        say(
            f"[bold]{escape(str(run.out))}[/]: {type(run.model).__name__}, "
            f"{run.parameters:,} parameters, context {model.block_size}; "
            f"{describe_device(run.device)}, {precision}"
        )
        say(
            f"{escape(run.config.data)}: {len(data['train'].tokens):,} tokens to train on, "
            f"{len(data['val'].tokens):,} to measure with, {run.tokenizer.vocab_size} different"
        )
        say(f"bigram baseline: validation loss {run.bigram_loss:.4f}{self._bits(run.bigram_loss)}")
        if run.state.step:
            say(f"going on from step {run.state.step:,}")
        super().started(run)

    def recorded(self, record: Record, best: Best | None) -> None:
        assert self.run is not None
        steps = self.run.config.train.steps
        left = record.seconds / record.step * (steps - record.step) if record.step else 0.0
        rate = self._rate(record)
        if record.val_loss is not None:
            train = f"{record.train_loss:7.4f}" if record.train_loss is not None else "      –"
            line = f"step {record.step:>6,}  train {train}  val {record.val_loss:7.4f}"
            line += self._bits(record.val_loss)
            if record.ema_val_loss is not None:
                line += f"  averaged {record.ema_val_loss:7.4f}{self._bits(record.ema_val_loss)}"
            line += "  [bold]best[/]" if best and record.step == best.step else "      "
            if not self.console.is_terminal and record.step:
                line += f"  {rate}  {duration(left)} left"
            self.console.print(line, soft_wrap=True)
        if record.train_loss is not None:
            self.progress.update(
                self.task,
                completed=record.step,
                description=f"step {record.step:,}/{steps:,}  loss {record.train_loss:.4f}  "
                + (f"best {best.val_loss:.4f}  " if best else "")
                + f"{rate}  {duration(left)} left",
            )

    def _bits(self, loss: float) -> str:
        """A validation loss in bits per byte, where a token is not a character."""
        assert self.run is not None
        if isinstance(self.run.tokenizer, CharTokenizer):
            return ""
        return f" ({self.run.data.splits['val'].bits_per_byte(loss):.4f} bits/byte)"

    def _rate(self, record: Record) -> str:
        """Tokens a second since the last line, evaluations left out."""
        earlier, self.previous = self.previous, record
        if earlier is None or record.val_loss is not None or record.seconds <= earlier.seconds:
            rate = record.tokens / record.seconds if record.seconds else 0.0
        else:
            rate = (record.tokens - earlier.tokens) / (record.seconds - earlier.seconds)
        return f"{rate:,.0f} tokens/s" + (f", MFU {self.mfu * rate:.0%}" if self.mfu else "")

    def said(self, line: str) -> None:
        self.console.print(line, style="yellow", soft_wrap=True, markup=False)


def result_table(result: Result) -> Table:
    """What a run came to."""
    run, best, last = result.run, result.best, result.last
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "best validation loss": f"{best.val_loss:.4f} nats per token, at step {best.step:,}"
        + (", of the averaged weights" if best.averaged else ""),
        "bits per byte": f"{best.bits_per_byte:.4f}",
        "bigram": f"{run.bigram_loss:.4f} nats per token, "
        f"{run.data.splits['val'].bits_per_byte(run.bigram_loss):.4f} bits per byte",
        "training": f"{duration(last.seconds)}, {last.tokens:,} tokens; ended: {result.ended}",
        "kept in": escape(f"{run.out}; more text with: nanogpt sample {run.out}"),
    }
    for name, value in rows.items():
        table.add_row(name, value, style="bold" if name.startswith("best") else "")
    return table
