"""The training loop: repeated runs, gradient accumulation, stopping, and the saved files."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nanogpt.data import Data
from nanogpt.errors import UserError
from nanogpt.evaluate import evaluate
from nanogpt.models import BigramConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.checkpoint import Best, load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.journal import Journal, Record
from nanogpt.runs.reporter import Reporter
from nanogpt.runs.start import prepare_run
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer
from nanogpt.train import Result, reason_to_stop, train
from tests.small import SMALL


def lines(result: Result) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the key `seconds`, which differs between runs."""
    text = (result.run.out / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(s).items() if k != "seconds"} for s in text.splitlines()]


def measure_loss(result: Result, checkpoint: str) -> float:
    """Load a checkpoint, and measure its validation loss again."""
    loaded = load_checkpoint(result.run.out / checkpoint)
    return evaluate(loaded.model, result.run.data.splits["val"]).loss


def test_training_lowers_the_loss_and_writes_all_files(config: RunConfig) -> None:
    result = train(config)
    out = result.run.out
    assert out == Path("runs/small")
    assert result.best.val_loss is not None
    assert result.best.val_loss < 2.2 < result.run.bigram_loss + 1
    assert [line["step"] for line in lines(result)] == list(range(0, 61, 5))
    assert [line["step"] for line in lines(result) if "val_loss" in line] == [0, 20, 40, 60]
    names = {"run.json", "metrics.jsonl", "loss.png", "best", "last", ".pid"}
    assert {file.name for file in out.iterdir()} - {".lock"} == names  # Windows removes .lock
    saved = json.loads((out / "run.json").read_text())
    assert saved["config"]["model"]["vocab_size"] == result.run.tokenizer.vocab_size
    assert saved["config"]["train"]["steps"] == 60
    assert saved["config"]["data"] == str(Path(config.data).resolve())


@pytest.fixture
def random_text_config(config: RunConfig, tmp_path: Path, text: str) -> RunConfig:
    """A run on random characters, which the model can only memorise."""
    random = "".join(text[i] for i in torch.randperm(400).tolist())
    (tmp_path / "random.txt").write_text(random)
    settings = TrainConfig(steps=300, batch_size=16, eval_every=30)
    return replace(config, data=str(tmp_path / "random.txt"), train=settings)


@pytest.mark.slow
def test_the_best_weights_have_the_best_loss(random_text_config: RunConfig) -> None:
    result = train(random_text_config)
    assert result.best.step < result.last.step == 300
    best, last = load_checkpoint(result.run.out / "best"), load_checkpoint(result.run.out / "last")
    assert (best.step, last.step) == (result.best.step, 300)
    assert measure_loss(result, "best") == pytest.approx(result.best.val_loss)
    assert measure_loss(result, "last") == pytest.approx(result.last.val_loss)


def test_averaged_weights_are_kept_if_their_loss_is_lower(config: RunConfig) -> None:
    """At this high learning rate, weights oscillate around a minimum; their average does not."""
    optim = OptimConfig(lr=3e-2, min_lr=3e-2, warmup=10, ema=0.9)
    result = train(replace(config, optim=optim))
    assert result.best.averaged
    record = next(r for r in result.run.journal.evaluations if r.step == result.best.step)
    assert (record.ema_val_loss, record.ema_bits_per_byte) == (
        result.best.val_loss,
        result.best.bits_per_byte,
    )
    assert record.val_loss is not None
    assert record.val_loss > result.best.val_loss
    assert measure_loss(result, "best") == pytest.approx(result.best.val_loss)
    assert measure_loss(result, "last") == pytest.approx(result.last.val_loss)
    assert lines(result)[-1]["val_loss"] == result.last.val_loss


def test_averaged_weights_are_not_kept_if_their_loss_is_higher(config: RunConfig) -> None:
    optim = replace(config.optim, ema=0.999)
    result = train(replace(config, optim=optim, train=replace(config.train, steps=20)))
    assert not result.best.averaged
    assert evaluate(
        load_checkpoint(result.run.out / "best").model, result.run.data.splits["val"]
    ).loss == pytest.approx(result.best.val_loss)
    without = train(config=replace(config, train=replace(config.train, steps=20)))
    assert without.best.val_loss == result.best.val_loss  # averaging does not change training


def test_the_same_seed_gives_the_same_losses_twice(config: RunConfig) -> None:
    first, second = train(config), train(config)
    assert first.run.out != second.run.out
    assert lines(first) == lines(second)
    other = train(replace(config, seed=1))
    assert lines(other) != lines(first)


@pytest.mark.slow
def test_more_evaluations_do_not_change_training(config: RunConfig) -> None:
    often = train(replace(config, train=replace(config.train, eval_every=5)))
    seldom = train(replace(config, train=replace(config.train, eval_every=60)))
    assert [line["train_loss"] for line in lines(often)[1:]] == [
        line["train_loss"] for line in lines(seldom)[1:]
    ]


def test_a_line_has_the_mean_loss_of_its_steps(config: RunConfig) -> None:
    every = lines(train(replace(config, train=replace(config.train, log_every=1))))
    fifth = lines(train(config))
    for i, line in enumerate(fifth[1:]):
        batches = [each["train_loss"] for each in every[1:][5 * i : 5 * i + 5]]
        assert line["train_loss"] == pytest.approx(sum(batches) / 5, rel=1e-5)


def test_the_baseline_is_counted_on_the_training_split(config: RunConfig, text: str) -> None:
    train_text, val_text = text[:5400], text[5400:]
    pairs, firsts = Counter(pairwise(train_text)), Counter(train_text[:-1])
    V = len(set(text))
    losses = [-math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in pairwise(val_text)]
    assert prepare_run(config).bigram_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.slow
def test_gradient_accumulation_hardly_changes_the_losses(config: RunConfig) -> None:
    config = replace(config, model=replace(SMALL, dropout=0.0))
    whole = train(config)
    parts = train(replace(config, train=replace(config.train, accumulation=4)))
    for one, other in zip(lines(whole), lines(parts), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_other_random_numbers_do_not_change_the_batches(config: RunConfig) -> None:
    class RandomNumberDrawer(Reporter):
        def recorded(self, record: Record, best: Best | None) -> None:
            torch.rand(3)

    config = replace(config, model=replace(SMALL, dropout=0.0))
    assert lines(train(config)) == lines(train(config, RandomNumberDrawer()))


def test_training_a_bigram_reaches_the_loss_of_counting(config: RunConfig) -> None:
    result = train(
        replace(
            config,
            model=BigramConfig(block_size=16),
            optim=OptimConfig(lr=0.1, warmup=0, weight_decay=0.0),
            train=TrainConfig(steps=300, batch_size=64, eval_every=100),
        )
    )
    assert result.best.val_loss == pytest.approx(result.run.bigram_loss, abs=0.02)


def test_training_stops_at_the_requested_loss(config: RunConfig) -> None:
    settings = replace(config.train, stop_at_val_loss=2.5, eval_every=5)
    result = train(replace(config, train=settings))
    assert result.ended == "validation loss reached 2.5"
    assert result.last.step < 60
    assert result.last.val_loss is not None
    assert result.last.val_loss <= 2.5


def test_a_loss_equal_to_the_requested_loss_stops_training(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a run", 2.5)
    journal.add(Record(1, 1, 1, 0.1, 1.0, 2.0, 2.0))
    assert reason_to_stop(journal, TrainConfig(stop_at_val_loss=1.99)) is None
    reached = reason_to_stop(journal, TrainConfig(stop_at_val_loss=2.0))
    assert reached == "validation loss reached 2.0"


def test_patience_counts_evaluations_since_the_best(tmp_path: Path) -> None:
    settings = TrainConfig(steps=100, patience=2)
    journal, reasons = Journal(tmp_path, "a run", 2.5), []
    for step, loss in enumerate([4.0, 3.0, 3.5, 2.0, 2.5, 2.25]):
        for _ in range(3):  # lines without an evaluation do not count
            journal.add(Record(step, step, step, 0.1, 1.0))
        journal.add(Record(step, step, step, 0.1, 1.0, loss, loss))
        reasons.append(reason_to_stop(journal, settings))
    assert reasons == [None] * 5 + ["no better validation loss in 2 evaluations"]


@pytest.mark.slow
def test_overfitting_is_reported_once(random_text_config: RunConfig) -> None:
    class LineRecorder(Reporter):
        def __init__(self) -> None:
            self.recorded_lines: list[str] = []

        def said(self, line: str) -> None:
            self.recorded_lines.append(line)

    recorder = LineRecorder()
    train(random_text_config, recorder)
    assert len(recorder.recorded_lines) == 1
    assert "Training loss keeps falling while validation loss rises" in recorder.recorded_lines[0]


def test_the_alphabet_determines_the_vocabulary_size(config: RunConfig, text: str) -> None:
    assert prepare_run(config).model.config.vocab_size == len(set(text))
    with pytest.raises(UserError, match=r"--model.vocab-size is 99, but the tokenizer has \d+ to"):
        prepare_run(replace(config, model=replace(SMALL, vocab_size=99)))


def test_a_vocabulary_that_is_too_large_for_a_bigram_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "symbols.txt"
    file.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 16_385))) * 2, encoding="utf-8")
    config = RunConfig(data=str(file), device="cpu", model=BigramConfig())
    with pytest.raises(UserError, match="use a tokenizer with at most 16384 tokens"):
        prepare_run(config)


def test_nothing_is_written_for_a_run_that_cannot_start(config: RunConfig) -> None:
    with pytest.raises(UserError, match="too short"):
        train(replace(config, model=replace(SMALL, block_size=4096)))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("steps", 0, "steps is 0: it must be at least 1 and less than 2"),
        ("accumulation", 3, "accumulation is 3: it must divide batch_size 64"),
        ("patience", 0, "patience is 0: it must be at least 1, or None"),
    ],
)
def test_the_error_names_an_impossible_setting(field: str, value: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_bfloat16_reaches_about_the_loss_of_float32(config: RunConfig) -> None:
    exact, low_precision = train(config), train(replace(config, precision="bfloat16"))
    assert low_precision.best.val_loss == pytest.approx(exact.best.val_loss, abs=0.05)
    assert {p.dtype for p in low_precision.run.model.parameters()} == {torch.float32}
    assert lines(low_precision)[1]["train_loss"] != lines(exact)[1]["train_loss"]
    # A run in bfloat16 is evaluated in float32, like every run.
    last = evaluate(
        load_checkpoint(low_precision.run.out / "last").model, low_precision.run.data.splits["val"]
    )
    assert last.loss == pytest.approx(low_precision.last.val_loss, abs=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_reaches_about_the_loss_of_a_cpu(config: RunConfig, compile: bool) -> None:
    config = replace(config, model=replace(SMALL, dropout=0.0))
    on_cpu = train(config)
    settings = replace(config.train, compile=compile)
    on_gpu = train(replace(config, device="cuda", precision="float32", train=settings))
    assert lines(on_gpu)[0] == pytest.approx(lines(on_cpu)[0], abs=1e-3)  # the initial loss
    assert on_gpu.best.val_loss == pytest.approx(on_cpu.best.val_loss, abs=0.05)
    assert load_checkpoint(on_gpu.run.out / "best").step == on_gpu.best.step


@pytest.mark.gpu
def test_tokens_that_do_not_fit_on_the_gpu_stay_on_the_host(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(config.train, compile=False)
    config = replace(config, device="cuda", deterministic=True, train=settings)
    on_gpu = train(config)
    monkeypatch.setattr("nanogpt.data.free_token_memory", lambda device: 0)
    on_host = train(replace(config, out=Path("other")))
    assert on_gpu.run.data.splits["train"].tokens.is_cuda
    assert not on_host.run.data.splits["train"].tokens.is_cuda
    assert lines(on_host) == lines(on_gpu)


def test_data_is_encoded_by_the_tokenizer_of_the_run(config: RunConfig, text: str) -> None:
    run = prepare_run(config)
    again = Data(make_corpus(text), CharTokenizer(text))
    assert torch.equal(run.data.splits["val"].tokens, again.splits["val"].tokens)
