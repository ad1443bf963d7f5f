"""What a person sees while a run goes on, in a terminal and in a file."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nanogpt.cli.progress import Bar
from nanogpt.cli.reporter import TerminalReporter, result_table
from nanogpt.models import GPTConfig, flops_per_token
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.train import Result, train


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    return RunConfig(
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8),
        train=TrainConfig(steps=40, batch_size=2, eval_every=20, log_every=1),
    )


def shown(config: RunConfig, terminal: bool) -> tuple[Result, str]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120, highlight=False)
    with TerminalReporter(console) as reporter:
        result = train(config, reporter)
    return result, screen.getvalue()


def test_in_a_file_there_is_a_line_for_each_evaluation(config: RunConfig) -> None:
    result, text = shown(config, terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith(f"{result.run.out}: GPT, {result.run.parameters:,} parameters")
    steps = [line for line in lines if line.startswith("step")]
    assert [int(line.split()[1]) for line in steps] == [0, 20, 40]
    assert re.search(r"val  2\.\d{4}  best  [\d,]+ tokens/s  \d+ s left$", steps[1])
    assert len(lines) == 3 + 3


def test_where_a_token_is_no_character_bits_per_byte_stand_beside(config: RunConfig) -> None:
    result, text = shown(replace(config, tokenizer="byte"), terminal=False)
    assert "bits/byte" not in shown(replace(config, out=Path("other")), terminal=False)[1]
    bits = result.run.bigram_loss / math.log(2)
    assert f"bigram baseline: validation loss {result.run.bigram_loss:.4f} ({bits:.4f} " in text
    lines = re.findall(r"val +(\d\.\d{4}) \((\d\.\d{4}) bits/byte\)", text)
    assert len(lines) == 3
    for loss, found in lines:
        assert float(found) == pytest.approx(float(loss) / math.log(2), abs=2e-4)


def test_the_loss_of_the_averaged_weights_stands_beside(config: RunConfig) -> None:
    result, text = shown(replace(config, optim=OptimConfig(lr=0.1, ema=0.9)), terminal=False)
    last = text.splitlines()[-1]
    assert re.search(r"val  2\.\d{4}  averaged  2\.\d{4}  ", last)
    screen = io.StringIO()
    best = replace(result.best, averaged=True)
    Console(file=screen, width=120).print(result_table(replace(result, best=best)))
    assert f"at step {best.step}, of the averaged weights" in screen.getvalue()


def test_where_the_peak_is_known_its_part_is_said(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.cli.reporter.find_peak_flops", lambda device, precision: 1e9)
    result, text = shown(config, terminal=False)
    rate, part = re.findall(r"([\d,]+) tokens/s, MFU (\d+)%", text)[-1]
    flops = flops_per_token(result.run.model)
    assert float(part) == pytest.approx(100 * flops * float(rate.replace(",", "")) / 1e9, abs=1)


def test_in_a_terminal_a_line_lives(config: RunConfig) -> None:
    _, text = shown(config, terminal=True)
    live = r"step 40/40  loss \d\.\d{4}  best \d\.\d{4}  [\d,]+ tokens/s  0 s left"
    assert re.search(live, text)
    assert text.count("\x1b[2K") > 1  # it is redrawn in place, and gone at the end


def test_the_table_at_the_end_is_what_happened(config: RunConfig) -> None:
    result, _ = shown(config, terminal=False)
    result = replace(result, last=replace(result.last, seconds=187.0))
    screen = io.StringIO()
    Console(file=screen, width=120, highlight=False).print(result_table(result))
    text = screen.getvalue()
    best = result.best
    assert f"{best.val_loss:.4f} nats per token, at step {best.step}" in text
    assert f"bits per byte         {best.bits_per_byte:.4f}" in text
    assert f"bigram                {result.run.bigram_loss:.4f}" in text
    assert "3:07 min, 640 tokens; ended: all 40 steps done" in text


def test_a_bar_says_how_far_it_is_and_goes() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=100, force_terminal=True)) as bar:
        bar.made -= 1  # as if it had taken a second already
        bar.tell("reading a.txt", 3_000_000, 0)
        bar.progress.refresh()
        bar.began -= 2
        bar.tell("reading a.txt", 8_000_000, 0)
        bar.progress.refresh()
        bar.tell("encoding [b]", 1_000_000, 4_000_000)
        bar.began -= 1
        bar.tell("encoding [b]", 2_000_000, 4_000_000)
        bar.progress.refresh()
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert "reading a.txt  8 MB  4.0 MB/s" in text
    assert "encoding [b]  2 of 4 MB  2.0 MB/s  1 s left" in text
    assert text.count("\x1b[2K") > 1


def test_a_bar_of_what_is_short_is_not_seen() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=100, force_terminal=True)) as bar:
        bar.tell("reading a.txt", 3_000_000, 0)
    assert screen.getvalue() == ""
