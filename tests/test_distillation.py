"""The loss with soft targets equals written-out formulas; teachers are checked and recorded."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nanogpt.data import inputs_and_targets
from nanogpt.distillation import share_weights
from nanogpt.errors import Interrupted, UserError
from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import CapturedStepper, make_loss
from nanogpt.models import BigramConfig, ModernConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.run import Run, read_description, read_run_config
from nanogpt.runs.start import prepare_run
from nanogpt.text.kneser_ney import KneserNey
from nanogpt.train import resume_training, train
from tests.same import assert_same
from tests.small import SMALL
from tests.test_resume import Interrupter, train_with_interruptions
from tests.test_step import build_stepper, never

MODERN = ModernConfig(n_layer=1, n_head=1, n_embd=16, block_size=24)


@pytest.fixture
def learner(config: RunConfig) -> RunConfig:
    """The configuration of a run with two teachers, which are trained runs of different kinds."""
    config = replace(config, train=TrainConfig(12, 8, eval_every=4, log_every=2))
    short = replace(config, train=replace(config.train, steps=4))
    train(replace(short, out=Path("runs/one"), seed=1))
    train(replace(short, out=Path("runs/two"), seed=2, model=MODERN))
    return replace(config, teachers=[Path("one"), Path("runs/two")])


def set_up(config: RunConfig, **settings: float) -> RunConfig:
    """Return a configuration with these training settings, and with averaged weights."""
    return replace(
        config,
        optim=replace(config.optim, ema=0.9),
        train=replace(config.train, **settings),  # type: ignore[arg-type]
        model=replace(SMALL, dropout=0.0),
    )


@pytest.mark.parametrize(
    ("weight", "temperature", "mean_teacher", "ngram_weight"),
    [(0.9, 1, 0, 0), (1, 1, 0, 0), (0.5, 2, 0, 0), (0.6, 1.5, 0.3, 0), (0.5, 1.5, 0.1, 0.2)],
)
def test_the_loss_equals_the_formula(
    learner: RunConfig, weight: float, temperature: float, mean_teacher: float, ngram_weight: float
) -> None:
    config = set_up(
        learner,
        teacher_weight=weight,
        teacher_temperature=temperature,
        mean_teacher=mean_teacher,
        ngram_weight=ngram_weight,
    )
    run = prepare_run(config)
    for average in run.state.average:
        average += 0.1 * torch.randn_like(average)
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(torch.tensor([5, 90]), 16))
    loss = make_loss(run, pytest.fail)(inputs, targets)
    loss.backward()
    found = [p.grad for p in run.model.parameters()]
    run.model.zero_grad()

    with run.state.averaged(), torch.no_grad():
        q = run.model(inputs).double().softmax(dim=-1)  # (B, T, V)
    logits = run.model(inputs).double()  # (B, T, V)
    p = sum(t.model(inputs).double().softmax(dim=-1) for t in run.teachers) / 2  # (B, T, V)
    p = p ** (1 / temperature)
    p = p / p.sum(dim=-1, keepdim=True)
    teaching = -(p * (logits / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()
    own = -(q * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    text = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    V = run.tokenizer.vocab_size
    counts = KneserNey(run.data.splits["train"].tokens.numpy(), 7, V)
    u = [[counts.next_probabilities(x[: i + 1]) for i in range(16)] for x in inputs.tolist()]
    counted = -(torch.tensor(np.array(u)) * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    expected = (1 - weight - mean_teacher - ngram_weight) * text + ngram_weight * counted
    expected = expected + weight * temperature**2 * teaching + mean_teacher * own
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    expected.backward()
    for gradient, p in zip(found, run.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-5)


def test_without_teachers_the_loss_is_the_cross_entropy(config: RunConfig) -> None:
    run = prepare_run(set_up(config))
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(torch.tensor([0]), 16))
    expected = cross_entropy(run.model(inputs), targets)
    assert make_loss(run, pytest.fail)(inputs, targets) == expected


def test_a_bigram_can_learn_from_a_gpt(learner: RunConfig) -> None:
    """The table of a bigram comes closer to the probabilities of its teacher."""
    bigram = replace(learner, teachers=learner.teachers[:1], model=BigramConfig(block_size=16))
    settings = replace(learner.train, teacher_weight=1.0)
    run = train(replace(bigram, train=settings, out=Path("bigram"))).run
    losses = [json.loads(line) for line in Path("bigram/metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["train_loss"] < losses[1]["train_loss"]
    assert run.teachers[0].model.training is False


def test_teachers_stay_the_same_and_the_mean_teacher_follows_the_weights(
    learner: RunConfig,
) -> None:
    config = set_up(learner, mean_teacher=0.1)
    run, stepper = build_stepper(config)
    before = [p.clone() for t in run.teachers for p in t.model.parameters()]
    shadow = share_weights(run.model, run.state.average)
    stepper.take(3, never)
    after = [p for t in run.teachers for p in t.model.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in after)
    for p, average in zip(shadow.parameters(), run.state.average, strict=True):
        assert torch.equal(p, average)
        assert p.grad is None


def test_planned_steps_equal_plain_steps(learner: RunConfig) -> None:
    config = set_up(learner, mean_teacher=0.1)
    (one, plain), (two, planned) = build_stepper(config), build_stepper(config, CapturedStepper)
    assert torch.equal(plain.take(5, never), planned.take(5, never))
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture
def mixed(config: RunConfig) -> RunConfig:
    """The configuration of a run with a transfer text and with counts of n-grams."""
    lines = Path(config.data).read_text("utf-8").splitlines()
    Path("more.txt").write_text("\n".join(reversed(lines)), "utf-8")
    train = TrainConfig(12, 8, eval_every=4, log_every=2, ngram_weight=0.2, transfer_share=0.25)
    return replace(config, train=train, transfer="more.txt")


def test_a_part_of_each_batch_comes_from_the_transfer_text(mixed: RunConfig) -> None:
    run, stepper = build_stepper(mixed)
    assert run.transfer is not None
    more = Path("more.txt").read_text("utf-8")
    assert run.tokenizer.decode(run.transfer.tokens.tolist()) == more
    training = run.tokenizer.decode(run.data.splits["train"].tokens.tolist())
    assert torch.equal(
        stepper.draw_blocks(3, 2), torch.cat([stepper.draw_blocks(3, 1), stepper.draw_blocks(4, 1)])
    )
    drawn = set()
    for ahead in range(20):
        (blocks,) = stepper.draw_blocks(ahead, 1)
        texts = [run.tokenizer.decode(block.tolist()) for block in blocks]
        assert len(texts) == 8
        assert all(text in training for text in texts[:6])
        assert all(text in more for text in texts[6:])
        drawn |= set(texts[6:])
    assert len(drawn) == 40


def test_a_run_with_a_transfer_text_is_resumed_exactly(mixed: RunConfig) -> None:
    train(replace(mixed, out=Path("straight")))
    train_with_interruptions(mixed, Path("stopped"), 0, 4, 6)
    assert_same(Path("straight"), Path("stopped"))
    saved = read_run_config(Path("stopped"))
    Path("more.txt").rename("moved.txt")
    longer = replace(mixed.train, steps=14)
    with pytest.raises(UserError, match=r"^--transfer: there is no file .*more\.txt"):
        resume_training(Path("stopped"), replace(saved, train=longer))
    resume_training(Path("stopped"), replace(saved, train=longer, transfer="moved.txt"))
    Path("moved.txt").write_text("another text", "utf-8")
    with pytest.raises(UserError, match=r"^--transfer: .*moved\.txt is not the text"):
        resume_training(Path("stopped"), replace(saved, train=longer, transfer="moved.txt"))


@pytest.mark.parametrize(
    ("change", "message", "advised"),
    [
        (
            {"train": TrainConfig(2, 4, transfer_share=0.1)},
            "transfer_share is 0.1, so a batch of 4 has 0 blocks of the transfer text: each batch "
            "needs blocks of both texts, so use a larger batch, or a share closer to 0.5",
            {"train": TrainConfig(2, 4, transfer_share=0.2)},
        ),
        (
            {"tokenizer": "bpe:300"},
            "ngram_weight is 0.2, but the tokenizer has 300 tokens: use a tokenizer with at most "
            "256, such as byte, or --train.ngram-weight 0",
            {"tokenizer": "byte"},
        ),
        (
            {"transfer": "nope.txt"},
            "--transfer: there is no file or corpus nope.txt: the corpora are tinyshakespeare, "
            "shakespeare, shakespeare-rest",
            {"transfer": "more.txt"},
        ),
    ],
)
def test_the_advice_for_a_transfer_text_works(
    mixed: RunConfig, change: dict[str, object], message: str, advised: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        prepare_run(replace(mixed, **change))  # type: ignore[arg-type]
    assert not Path("runs").exists()
    prepare_run(replace(mixed, **{**change, **advised}))  # type: ignore[arg-type]


def test_a_resumed_run_keeps_its_transfer_text(mixed: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(replace(mixed, out=Path("mixed")), Interrupter(4))
    config = read_run_config(Path("mixed"))
    assert config.transfer == str(Path("more.txt").absolute())
    with pytest.raises(UserError, match="started with a transfer text: name it with --transfer"):
        resume_training(Path("mixed"), replace(config, transfer=None))
    with pytest.raises(Interrupted):
        train(replace(mixed, out=Path("plain"), transfer=None), Interrupter(4))
    config = read_run_config(Path("plain"))
    with pytest.raises(UserError, match="started without a transfer text: leave out --transfer"):
        resume_training(Path("plain"), replace(config, transfer="more.txt"))


def test_too_long_texts_are_not_counted(mixed: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt.runs.start.MAX_COUNTED_TOKENS", 100)
    message = r"tokens: use a text with at most 100, or --train\.ngram-weight 0$"
    with pytest.raises(UserError, match=message):
        prepare_run(mixed)
    prepare_run(replace(mixed, train=replace(mixed.train, ngram_weight=0.0)))


def test_planned_steps_with_a_transfer_text_equal_plain_steps(mixed: RunConfig) -> None:
    mixed = replace(mixed, model=replace(SMALL, dropout=0.0))
    (one, plain), (two, planned) = build_stepper(mixed), build_stepper(mixed, CapturedStepper)
    assert torch.equal(plain.take(5, never), planned.take(5, never))
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_resumed_run_equals_a_run_without_a_stop(learner: RunConfig) -> None:
    """The teachers are found again, even after they have moved."""
    config = replace(set_up(learner, mean_teacher=0.1), model=learner.model)  # with dropout
    train(replace(config, out=Path("straight")))
    train_with_interruptions(config, Path("stopped"), 0, 4, 6)
    assert_same(Path("straight"), Path("stopped"))
    Path("runs").rename("moved")
    moved = [Path("moved/one"), Path("moved/two")]
    longer = replace(learner.train, steps=16, mean_teacher=0.1)
    with pytest.raises(UserError, match="there is no run 'runs/one'"):
        resume_training(Path("stopped"), replace(read_run_config(Path("stopped")), train=longer))
    for out in (Path("stopped"), Path("straight")):
        resume_training(out, replace(read_run_config(out), train=longer, teachers=moved))
    assert_same(Path("straight"), Path("stopped"))


def test_the_hashes_of_the_weights_are_recorded(learner: RunConfig) -> None:
    out = train(replace(learner, out=Path("student"))).run.out
    sums = [Path(f"runs/{name}/best/SHA256SUMS").read_text() for name in ("one", "two")]
    hashes = [re.findall("([0-9a-f]{64})  model.safetensors", text)[0] for text in sums]
    assert read_description(out).teachers_sha256 == hashes
    assert read_description(out).config.teachers == [Path("runs/one"), Path("runs/two")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": [Path("one")]}, "the number of --teachers is 1, but this run was started wi"),
        ({"teachers": [Path("two"), Path("one")]}, "runs/two/best/ does not have the weights"),
        ({"teachers": [Path("one"), Path("nope")]}, "there is no run 'nope'"),
    ],
)
def test_other_teachers_are_refused(
    learner: RunConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(Interrupted):
        train(replace(learner, out=Path("student")), Interrupter(4))
    with pytest.raises(UserError, match=message):
        resume_training(Path("student"), replace(read_run_config(Path("student")), **change))  # type: ignore[arg-type]
    resume_training(Path("student"), read_run_config(Path("student")))


def test_a_changed_teacher_is_refused(learner: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(replace(learner, out=Path("student")), Interrupter(4))
    shutil.copytree("runs/one", "kept")
    shutil.rmtree("runs/one/best")
    shutil.copytree("runs/one/last", "runs/one/best")
    resume_training(
        Path("runs/one"), replace(read_run_config(Path("runs/one")), train=learner.train)
    )
    config = read_run_config(Path("student"))
    with pytest.raises(UserError, match="runs/one/best/ does not have the weights that this run"):
        resume_training(Path("student"), config)
    resume_training(Path("student"), replace(config, teachers=[Path("kept"), Path("two")]))


@pytest.mark.parametrize(
    ("change", "message", "advised"),
    [
        (
            {"tokenizer": "byte"},
            "the teacher runs/one has another tokenizer than the new run: use its tokenizer, with "
            "--tokenizer runs/one",
            {"tokenizer": "runs/one"},
        ),
        (
            {"model": MODERN},
            "the teacher runs/one reads 16 tokens, but the new model reads 24: use "
            "--model.block-size 16, or another teacher",
            {"model": replace(MODERN, block_size=16)},
        ),
    ],
)
def test_teachers_must_fit_the_new_model(
    learner: RunConfig, change: dict[str, object], message: str, advised: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        prepare_run(replace(learner, **change))  # type: ignore[arg-type]
    assert isinstance(prepare_run(replace(learner, **advised)), Run)  # type: ignore[arg-type]


def test_names_of_runs_follow_the_option(learner: RunConfig, nanogpt, small: list[str]) -> None:  # type: ignore[no-untyped-def]
    flags = [*small, "--data", learner.data, "--out", "student"]
    status, _, problem = nanogpt("train", *flags, "--teachers", "one", "runs/two", "--seed", "3")
    assert (status, problem) == (0, "")
    assert read_run_config(Path("student")).teachers == [Path("runs/one"), Path("runs/two")]
    message = "nanogpt: --teachers has no value: name one or more runs, or leave the option out\n"
    assert nanogpt("train", "--teachers", "--seed", "3") == (2, "", message)
    assert nanogpt("train", "--teachers") == (2, "", message)
    status, _, problem = nanogpt("explain", "tiny", "--teachers", "one")
    assert (status, problem.startswith("nanogpt: --teachers has no effect: explain does")) == (
        2,
        True,
    )
