"""Training steps give the results of explicit formulas, for any number of steps per call."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nanogpt.data import BatchOrder, Split, inputs_and_targets
from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import make_loss
from nanogpt.models import GPT, GPTConfig, ModernConfig, build
from nanogpt.optim import OptimConfig, get_ema_decay, get_learning_rate
from nanogpt.runs.config import STEPS_AHEAD, RunConfig, TrainConfig
from nanogpt.runs.run import Run, read_run_config
from nanogpt.runs.start import prepare_run
from nanogpt.step import Stepper, compute_gradients
from nanogpt.train import resume_training, train
from tests.small import SMALL


def test_four_parts_of_16_give_the_gradients_of_a_batch_of_64() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=11))
    inputs, targets = torch.randint(11, (2, 64, 16)).unbind()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y)

    whole = compute_gradients(loss, inputs, targets)
    reference = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    parts = compute_gradients(loss, inputs, targets, accumulation=4)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, loss(inputs, targets))
    for parameter, expected in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=0)


def test_training_equals_three_explicit_steps(config: RunConfig) -> None:
    """The explicit steps use the same batches, clipping, rates and weight decay as train()."""
    settings = replace(config.train, steps=3)
    config = replace(config, seed=7, model=replace(SMALL, dropout=0.0), train=settings)
    trained = train(config).run.model

    run = prepare_run(config)
    torch.manual_seed(7)
    for fresh, p in zip(build(run.model.config).parameters(), run.model.parameters(), strict=True):
        assert torch.equal(fresh, p)
    matrices = [p for p in run.model.parameters() if p.dim() >= 2]
    vectors = [p for p in run.model.parameters() if p.dim() < 2]
    groups: list[dict[str, object]] = [{"params": matrices}]
    groups += [{"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.1)
    order = BatchOrder("random", len(run.data.splits["train"].tokens), 16, seed=7)
    for step in range(3):
        inputs, targets = inputs_and_targets(
            run.data.splits["train"].blocks(order.starts(8 * step, 8), 16)
        )
        cross_entropy(run.model(inputs), targets).backward()
        gradient = [p.grad for p in run.model.parameters() if p.grad is not None]
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        for g in gradient:
            g *= min(1.0, 1.0 / norm.item())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step + 1) / 11  # the first steps of the warm-up
        optimizer.step()
        optimizer.zero_grad()
    for ours, expected in zip(trained.parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_blocks_are_drawn_in_the_configured_order(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 steps of 8 blocks, then 42 steps of 4: two epochs of 167 blocks, and 2 blocks more."""
    drawn: list[int] = []

    def blocks(self: Split, starts: Tensor, size: int) -> Tensor:
        if len(starts) > 1:  # not the single block of the check before each save
            drawn.extend(starts.tolist())
        return original(self, starts, size)

    original = Split.blocks
    monkeypatch.setattr(Split, "blocks", blocks)
    settings = TrainConfig(steps=21, batch_size=8, eval_every=50, order="epochs")
    model = replace(SMALL, block_size=32)
    run = train(replace(config, model=model, train=settings)).run
    settings = replace(settings, steps=63, batch_size=4)
    resume_training(run.out, replace(read_run_config(run.out), train=settings))
    order = BatchOrder("epochs", len(run.data.splits["train"].tokens), 32, config.seed)
    assert order.per_epoch == 167
    assert len(drawn) == 21 * 8 + 42 * 4
    assert torch.equal(torch.tensor(drawn), order.starts(0, len(drawn)))


def build_stepper(config: RunConfig, kind: type[Stepper] = Stepper) -> tuple[Run, Stepper]:
    run = prepare_run(config)
    run.lock.release()
    return run, kind(run, make_loss(run, pytest.fail))


def never() -> bool:
    return False


@pytest.fixture
def muon_config(config: RunConfig) -> RunConfig:
    """A run with two optimizers, averaged weights and dropout."""
    return replace(
        config,
        model=ModernConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        optim=OptimConfig("muon", lr=1e-2, muon_lr=3e-2, warmup=4, ema=0.9),
        train=replace(config.train, steps=20),
    )


def test_the_rate_of_muon_is_proportional_to_that_of_adam(muon_config: RunConfig) -> None:
    _, stepper = build_stepper(muon_config)
    for ahead in range(20):
        (adam_rate, muon_rate), _ = stepper.plan(ahead)
        assert adam_rate == get_learning_rate(ahead, 20, muon_config.optim)
        assert muon_rate == pytest.approx(3 * adam_rate)


def test_the_number_of_steps_per_call_does_not_change_results(muon_config: RunConfig) -> None:
    (one, together), (other, apart) = build_stepper(muon_config), build_stepper(muon_config)
    torch.manual_seed(3)
    whole = together.take(10, never)
    torch.manual_seed(3)
    parts = [apart.take(n, never) for n in (1, 4, 5)]
    assert torch.equal(whole, torch.cat(parts))
    assert (one.state.step, one.state.tokens) == (10, 10 * 8 * 16)
    first, second = one.state.tensors(), other.state.tensors()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_step_returns_the_loss_and_the_norm_of_every_gradient(config: RunConfig) -> None:
    """The norms are measured before clipping."""
    config = replace(config, model=replace(SMALL, dropout=0.0))
    run, steps = build_stepper(replace(config, optim=replace(config.optim, grad_clip=1e-3)))
    order = BatchOrder("random", len(run.data.splits["train"].tokens), 16, config.seed)
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(order.starts(0, 8), 16))
    loss = cross_entropy(run.model(inputs), targets)
    gradients = torch.autograd.grad(loss, [*run.model.parameters()])
    (found,) = steps.take(1, never)
    torch.testing.assert_close(found[0], loss.detach())
    torch.testing.assert_close(found[1:], torch.stack([g.norm() for g in gradients]))


def test_a_call_can_stop_between_two_steps(muon_config: RunConfig) -> None:
    """The next call continues with the next step; no step is skipped or repeated."""
    (one, straight), (other, stopped) = build_stepper(muon_config), build_stepper(muon_config)
    torch.manual_seed(3)
    whole = straight.take(9, never)
    torch.manual_seed(3)
    first = stopped.take(9, lambda: other.state.step == 4)
    assert len(first) == other.state.step == 4
    assert torch.equal(torch.cat([first, stopped.take(5, never)]), whole)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_step_has_its_own_rates(
    muon_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates of Adam, Muon and weight averaging change at each step, even within one take()."""
    muon_config = replace(muon_config, train=replace(muon_config.train, steps=2 * STEPS_AHEAD))
    run, steps = build_stepper(muon_config)
    used: list[list[float]] = [[], [], []]
    for optimizer, rates in zip(run.state.optimizers, used[:2], strict=True):
        monkeypatch.setattr(optimizer, "step", lambda rate, rates=rates: rates.append(float(rate)))
    monkeypatch.setattr(
        "nanogpt.step.update_average", lambda m, w, part: used[2].append(float(part))
    )
    for n in (3, STEPS_AHEAD):
        steps.take(n, never)
    planned = [
        get_learning_rate(step, 2 * STEPS_AHEAD, muon_config.optim)
        for step in range(STEPS_AHEAD + 3)
    ]
    assert used[0] == pytest.approx(planned)
    assert used[1] == pytest.approx([3 * rate for rate in planned])
    assert used[2] == pytest.approx(
        [1 - get_ema_decay(step, muon_config.optim) for step in range(STEPS_AHEAD + 3)]
    )
