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
from nanogpt.runs.start import prepare_run
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer
from nanogpt.train import Reporter, Result, reason_to_stop, train
from tests.small import SMALL


def lines(result: Result) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the seconds."""
    text = (result.run.out / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(s).items() if k != "seconds"} for s in text.splitlines()]


def make_loss(result: Result, checkpoint: str) -> float:
    """Measure the validation loss of a checkpoint again."""
    loaded = load_checkpoint(result.run.out / checkpoint)
    return evaluate(loaded.model, result.run.data.splits["val"]).loss


def test_it_learns_and_leaves_what_it_promised(config: RunConfig) -> None:
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
def by_heart(config: RunConfig, tmp_path: Path, text: str) -> RunConfig:
    """A run on random characters: the model can only memorise the training text."""
    random = "".join(text[i] for i in torch.randperm(400).tolist())
    (tmp_path / "random.txt").write_text(random)
    settings = TrainConfig(steps=300, batch_size=16, eval_every=30)
    return replace(config, data=str(tmp_path / "random.txt"), train=settings)


@pytest.mark.slow
def test_the_best_weights_have_the_best_loss(by_heart: RunConfig) -> None:
    result = train(by_heart)
    assert result.best.step < result.last.step == 300
    best, last = load_checkpoint(result.run.out / "best"), load_checkpoint(result.run.out / "last")
    assert (best.step, last.step) == (result.best.step, 300)
    assert make_loss(result, "best") == pytest.approx(result.best.val_loss)
    assert make_loss(result, "last") == pytest.approx(result.last.val_loss)


def test_the_mean_of_the_weights_is_kept_where_it_is_better(config: RunConfig) -> None:
    """At this high learning rate the weights oscillate around a minimum; their average does not."""
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
    assert make_loss(result, "best") == pytest.approx(result.best.val_loss)
    assert make_loss(result, "last") == pytest.approx(result.last.val_loss)
    assert lines(result)[-1]["val_loss"] == result.last.val_loss


def test_a_mean_that_is_worse_is_not_kept(config: RunConfig) -> None:
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
def test_sampling_and_evaluating_in_between_changes_nothing(config: RunConfig) -> None:
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
def test_a_run_in_parts_is_the_same_run(config: RunConfig) -> None:
    config = replace(config, model=replace(SMALL, dropout=0.0))
    whole = train(config)
    parts = train(replace(config, train=replace(config.train, accumulation=4)))
    for one, other in zip(lines(whole), lines(parts), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_nobody_elses_random_numbers_change_the_order(config: RunConfig) -> None:
    class Dice(Reporter):
        def recorded(self, record: Record, best: Best | None) -> None:
            torch.rand(3)

    config = replace(config, model=replace(SMALL, dropout=0.0))
    assert lines(train(config)) == lines(train(config, Dice()))


def test_the_bigram_trains_to_what_counting_gives(config: RunConfig) -> None:
    result = train(
        replace(
            config,
            model=BigramConfig(block_size=16),
            optim=OptimConfig(lr=0.1, warmup=0, weight_decay=0.0),
            train=TrainConfig(steps=300, batch_size=64, eval_every=100),
        )
    )
    assert result.best.val_loss == pytest.approx(result.run.bigram_loss, abs=0.02)


def test_it_stops_at_the_loss_asked_for(config: RunConfig) -> None:
    settings = replace(config.train, stop_at_val_loss=2.5, eval_every=5)
    result = train(replace(config, train=settings))
    assert result.ended == "validation loss reached 2.5"
    assert result.last.step < 60
    assert result.last.val_loss is not None
    assert result.last.val_loss <= 2.5


def test_the_loss_asked_for_is_reached_by_equalling_it(tmp_path: Path) -> None:
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
def test_overfitting_is_said_once(by_heart: RunConfig) -> None:
    class Ears(Reporter):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def said(self, line: str) -> None:
            self.heard.append(line)

    ears = Ears()
    train(by_heart, ears)
    assert len(ears.heard) == 1
    assert "Training loss keeps falling while validation loss rises" in ears.heard[0]


def test_the_alphabet_decides_the_vocabulary(config: RunConfig, text: str) -> None:
    assert prepare_run(config).model.config.vocab_size == len(set(text))
    with pytest.raises(UserError, match=r"--model.vocab-size is 99, but this text has \d+ diff"):
        prepare_run(replace(config, model=replace(SMALL, vocab_size=99)))


def test_nothing_is_written_for_a_run_that_cannot_begin(config: RunConfig) -> None:
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
def test_an_impossible_setting_is_named(field: str, value: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_bfloat16_learns_as_well(config: RunConfig) -> None:
    exact, coarse = train(config), train(replace(config, precision="bfloat16"))
    assert coarse.best.val_loss == pytest.approx(exact.best.val_loss, abs=0.05)
    assert {p.dtype for p in coarse.run.model.parameters()} == {torch.float32}
    assert lines(coarse)[1]["train_loss"] != lines(exact)[1]["train_loss"]
    # Both runs are evaluated in float32.
    last = evaluate(load_checkpoint(coarse.run.out / "last").model, coarse.run.data.splits["val"])
    assert last.loss == pytest.approx(coarse.last.val_loss, abs=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_learns_the_same(config: RunConfig, compile: bool) -> None:
    config = replace(config, model=replace(SMALL, dropout=0.0))
    here = train(config)
    settings = replace(config.train, compile=compile)
    there = train(replace(config, device="cuda", precision="float32", train=settings))
    assert lines(there)[0] == pytest.approx(lines(here)[0], abs=1e-3)  # the same start
    assert there.best.val_loss == pytest.approx(here.best.val_loss, abs=0.05)
    assert load_checkpoint(there.run.out / "best").step == there.best.step


@pytest.mark.gpu
def test_tokens_that_a_gpu_has_no_room_for_stay_with_the_host(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(config.train, compile=False)
    config = replace(config, device="cuda", deterministic=True, train=settings)
    there = train(config)
    monkeypatch.setattr("nanogpt.data.room_for_tokens", lambda device: 0)
    here = train(replace(config, out=Path("other")))
    assert there.run.data.splits["train"].tokens.is_cuda
    assert not here.run.data.splits["train"].tokens.is_cuda
    assert lines(here) == lines(there)


def test_data_is_encoded_by_the_runs_own_tokenizer(config: RunConfig, text: str) -> None:
    run = prepare_run(config)
    again = Data(make_corpus(text), CharTokenizer(text))
    assert torch.equal(run.data.splits["val"].tokens, again.splits["val"].tokens)
