"""The output of a training run in a terminal and in a file."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nanogpt.cli.reporter import TerminalReporter, make_result_table
from nanogpt.models import GPTConfig, flops_per_token
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.text.kneser_ney import KneserNey
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


def run_and_print(config: RunConfig, terminal: bool) -> tuple[Result, str]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120, highlight=False)
    with TerminalReporter(console) as reporter:
        result = train(config, reporter)
    return result, screen.getvalue()


def test_a_file_has_a_line_for_each_evaluation(config: RunConfig) -> None:
    result, text = run_and_print(config, terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith(f"{result.run.out}: GPT, {result.run.parameters:,} parameters")
    steps = [line for line in lines if line.startswith("step")]
    assert [int(line.split()[1]) for line in steps] == [0, 20, 40]
    assert re.search(r"val  2\.\d{4}  best  [\d,]+ tokens/s  \d+ s left$", steps[1])
    assert len(lines) == 3 + 3


def test_losses_have_bits_per_byte_unless_tokens_are_characters(config: RunConfig) -> None:
    result, text = run_and_print(replace(config, tokenizer="byte"), terminal=False)
    assert "bits/byte" not in run_and_print(replace(config, out=Path("other")), terminal=False)[1]
    bits = result.run.bigram_loss / math.log(2)
    assert f"bigram baseline: validation loss {result.run.bigram_loss:.4f} ({bits:.4f} " in text
    lines = re.findall(r"val +(\d\.\d{4}) \((\d\.\d{4}) bits/byte\)", text)
    assert len(lines) == 3
    for loss, per_byte in lines:
        assert float(per_byte) == pytest.approx(float(loss) / math.log(2), abs=2e-4)


def test_the_loss_of_smoothed_ngrams_stands_beside_the_bigram_loss(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run_and_print(replace(config, tokenizer="byte"), terminal=False)
    train, val = (result.run.data.splits[name].tokens.numpy() for name in ("train", "val"))
    loss = KneserNey(train, 7, 256).loss(val)
    assert loss < result.run.bigram_loss
    bits = loss / math.log(2)
    screen = io.StringIO()
    Console(file=screen, width=120, highlight=False).print(make_result_table(result))
    expected = f"smoothed 7-grams      {loss:.4f} nats per token, {bits:.4f} bits per byte"
    assert expected in screen.getvalue()

    def lack_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as changed:
        changed.setattr("nanogpt.runs.run.KneserNey", lack_memory)
        result, _ = run_and_print(replace(config, out=Path("c")), terminal=False)
        assert result.run.smoothed_loss is None
    monkeypatch.setattr("nanogpt.runs.run.MAX_SMOOTHED_TOKENS", len(train) - 1)
    result, _ = run_and_print(replace(config, out=Path("b")), terminal=False)
    assert result.run.smoothed_loss is None


def test_the_loss_of_the_averaged_weights_is_shown(config: RunConfig) -> None:
    result, text = run_and_print(
        replace(config, optim=OptimConfig(lr=0.1, ema=0.9)), terminal=False
    )
    last = text.splitlines()[-1]
    assert re.search(r"val  2\.\d{4}  averaged  2\.\d{4}  ", last)
    screen = io.StringIO()
    best = replace(result.best, averaged=True)
    Console(file=screen, width=120).print(make_result_table(replace(result, best=best)))
    assert f"at step {best.step}, of the averaged weights" in screen.getvalue()


def test_mfu_is_shown_if_the_peak_is_known(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.cli.reporter.find_peak_flops", lambda device, precision: 1e9)
    result, text = run_and_print(config, terminal=False)
    rate, part = re.findall(r"([\d,]+) tokens/s, MFU (\d+)%", text)[-1]
    flops = flops_per_token(result.run.model)
    assert float(part) == pytest.approx(100 * flops * float(rate.replace(",", "")) / 1e9, abs=1)


def test_a_terminal_has_a_live_line(config: RunConfig) -> None:
    _, text = run_and_print(config, terminal=True)
    live = r"step 40/40  loss \d\.\d{4}  best \d\.\d{4}  [\d,]+ tokens/s  0 s left"
    assert re.search(live, text)
    assert text.count("\x1b[2K") > 1  # this escape sequence erases the line


def test_the_result_table_describes_the_run(config: RunConfig) -> None:
    result, _ = run_and_print(config, terminal=False)
    result = replace(result, last=replace(result.last, seconds=187.0))
    screen = io.StringIO()
    Console(file=screen, width=120, highlight=False).print(make_result_table(result))
    text = screen.getvalue()
    best = result.best
    assert f"{best.val_loss:.4f} nats per token, at step {best.step}" in text
    assert f"bits per byte         {best.bits_per_byte:.4f}" in text
    assert f"bigram baseline       {result.run.bigram_loss:.4f}" in text
    assert "3:07 min, 640 tokens; ended: all 40 steps done" in text
