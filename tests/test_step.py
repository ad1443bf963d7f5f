"""A step is what is written out, whatever it is taken together with."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanogpt.data import BatchOrder, Split, inputs_and_targets
from nanogpt.evaluate import cross_entropy
from nanogpt.models import GPT, GPTConfig, ModernConfig, build
from nanogpt.optim import OptimConfig, get_ema_decay, get_learning_rate
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.run import Run, read_run_config
from nanogpt.runs.start import prepare_run
from nanogpt.step import STEPS_AHEAD, Stepper, gradients, make_loss
from nanogpt.system.devices import use_deterministic
from nanogpt.train import resume_training, train
from tests.small import SMALL


def test_four_parts_of_16_are_a_batch_of_64() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=11))
    inputs, targets = torch.randint(11, (2, 64, 16)).unbind()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y)

    whole = gradients(loss, inputs, targets)
    reference = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    parts = gradients(loss, inputs, targets, parts=4)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, loss(inputs, targets))
    for parameter, expected in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=0)


def test_the_loop_is_what_is_written_out(config: RunConfig) -> None:
    """Three steps by hand: the same batches, gradients, clipping, rates and decay."""
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


def test_blocks_are_drawn_in_the_order_asked_for(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch and the next, eight blocks at a time, then after going on four."""
    drawn: list[int] = []

    def blocks(self: Split, starts: Tensor, size: int) -> Tensor:
        if len(starts) > 1:  # not the look at the model before it is saved
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


def stepper(config: RunConfig) -> tuple[Run, Stepper]:
    run = prepare_run(config)
    run.lock.release()
    return run, Stepper(run, make_loss(run, pytest.fail))


def never() -> bool:
    return False


@pytest.fixture
def muon(config: RunConfig) -> RunConfig:
    """With all that a step can have: two optimizers, a mean of the weights, dropout."""
    return replace(
        config,
        model=ModernConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        optim=OptimConfig("muon", lr=1e-2, muon_lr=3e-2, warmup=4, ema=0.9),
        train=replace(config.train, steps=20),
    )


def test_it_makes_no_difference_how_many_steps_are_taken_together(muon: RunConfig) -> None:
    (one, together), (other, apart) = stepper(muon), stepper(muon)
    torch.manual_seed(3)
    whole = together.take(10, never)
    torch.manual_seed(3)
    parts = [apart.take(n, never) for n in (1, 4, 5)]
    assert torch.equal(whole, torch.cat(parts))
    assert (one.state.step, one.state.tokens) == (10, 10 * 8 * 16)
    first, second = one.state.tensors(), other.state.tensors()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_it_finds_the_loss_and_the_norm_of_every_gradient(config: RunConfig) -> None:
    """Before they are made smaller."""
    config = replace(config, model=replace(SMALL, dropout=0.0))
    run, steps = stepper(replace(config, optim=replace(config.optim, grad_clip=1e-3)))
    order = BatchOrder("random", len(run.data.splits["train"].tokens), 16, config.seed)
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(order.starts(0, 8), 16))
    loss = cross_entropy(run.model(inputs), targets)
    slopes = torch.autograd.grad(loss, [*run.model.parameters()])
    (found,) = steps.take(1, never)
    torch.testing.assert_close(found[0], loss.detach())
    torch.testing.assert_close(found[1:], torch.stack([slope.norm() for slope in slopes]))


def test_it_stops_between_two_steps(muon: RunConfig) -> None:
    """And going on from there, nothing is left out and nothing is done twice."""
    (one, straight), (other, stopped) = stepper(muon), stepper(muon)
    torch.manual_seed(3)
    whole = straight.take(9, never)
    torch.manual_seed(3)
    first = stopped.take(9, lambda: other.state.step == 4)
    assert len(first) == other.state.step == 4
    assert torch.equal(torch.cat([first, stopped.take(5, never)]), whole)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_step_has_its_own_rates(muon: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Adam, of Muon and of the mean of the weights; the plan has as many rows as may be."""
    muon = replace(muon, train=replace(muon.train, steps=2 * STEPS_AHEAD))
    run, steps = stepper(muon)
    used: list[list[float]] = [[], [], []]
    for optimizer, rates in zip(run.state.optimizers, used[:2], strict=True):
        monkeypatch.setattr(optimizer, "step", lambda rate, rates=rates: rates.append(float(rate)))
    monkeypatch.setattr("nanogpt.step.follow", lambda m, w, part: used[2].append(float(part)))
    for n in (3, STEPS_AHEAD):
        steps.take(n, never)
    planned = [
        get_learning_rate(step, 2 * STEPS_AHEAD, muon.optim) for step in range(STEPS_AHEAD + 3)
    ]
    assert used[0] == pytest.approx(planned)
    assert used[1] == pytest.approx([3 * rate for rate in planned])
    assert used[2] == pytest.approx(
        [1 - get_ema_decay(step, muon.optim) for step in range(STEPS_AHEAD + 3)]
    )


@pytest.mark.parametrize("works", [True, False])
def test_the_compiled_loss_is_the_one_that_is_used(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """And where nothing can be compiled, the other."""

    def fast(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(7.0)

    monkeypatch.setattr("nanogpt.step.compiled", lambda *_: fast if works else None)
    run, _ = stepper(config)
    run.model.eval()  # no dropout
    loss = make_loss(replace(run, device=torch.device("cuda")), pytest.fail)
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(torch.tensor([0]), 16))
    if works:
        assert loss(inputs, targets) == 7
    else:
        loss = make_loss(run, pytest.fail)
        torch.testing.assert_close(loss(inputs, targets), cross_entropy(run.model(inputs), targets))


# On a GPU.


def on_a_gpu(config: RunConfig, captures: bool, compile: bool) -> tuple[Run, Tensor]:
    """50 steps, and what they found."""
    settings = replace(config.train, steps=50, cuda_graph=captures, compile=compile)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run, steps = stepper(replace(config, device="cuda", train=settings))
        assert all(p.grad is None for p in run.model.parameters())
        torch.manual_seed(3)
        found = torch.cat([steps.take(n, never) for n in (1, 2, 2, 45)])
    assert (steps.graph is not None and steps.graph.graph is not None) == captures
    # One for all blocks, one for what follows the logits.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * compile
    return run, found


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_captured_step_is_the_step(
    muon: RunConfig, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, where no sum depends on which thread comes first, dropout included."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # put back as it was, in the end
    muon = replace(muon, deterministic=True)
    try:
        (eager, expected), (captured, found) = (
            on_a_gpu(muon, captures, compile) for captures in (False, True)
        )
    finally:
        use_deterministic(False)
    assert torch.equal(found, expected)
    first, second = eager.state.tensors(), captured.state.tensors()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for p, q in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.gpu
@pytest.mark.parametrize("parts", [1, 2])
def test_a_compiled_and_captured_step_is_the_step(muon: RunConfig, parts: int) -> None:
    """Within what another order of sums makes of 50 steps; compiled once."""
    assert isinstance(muon.model, ModernConfig)
    muon = replace(
        muon,
        model=replace(muon.model, dropout=0.0),
        train=replace(muon.train, accumulation=parts),
    )
    (_, expected), (_, found) = on_a_gpu(muon, False, False), on_a_gpu(muon, True, True)
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-3, atol=0)


@pytest.mark.gpu
def test_a_step_that_waits_for_the_host_is_not_captured(text_file: Path, small: list[str]) -> None:
    """One line says so, and how to go on: in another process, as torch is of no use after it."""
    flags = ["train", "tiny", "--data", str(text_file), "--out", "mine", *small]
    flags += ["--device", "cuda", "--train.no-compile"]
    code = """
import sys
from nanogpt.cli import main
from nanogpt.models import GPT
original = GPT.forward
def forward(self, tokens, *cache):
    tokens.sum().item()
    return original(self, tokens, *cache)
GPT.forward = forward
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    says = re.fullmatch(
        r"nanogpt: a step cannot be captured in a CUDA graph \(.+\); without, it is slower: "
        r"nanogpt (train --resume mine --train.no-cuda-graph)\n",
        done.stderr,
    )
    assert says, done.stderr
    assert done.returncode == 1
    done = subprocess.run([*command, *says[1].split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    written = ["sample", "mine", "--prompt", "a", "--device", "cuda"]
    done = subprocess.run([*command, *written], capture_output=True, text=True)
    assert re.fullmatch(
        r"nanogpt: writing cannot be captured in a CUDA graph \(.+\); without, it is slower: "
        r"nanogpt sample --no-cuda-graph\n",
        done.stderr,
    ), done.stderr
    done = subprocess.run([*command, *written, "--no-cuda-graph"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
