"""A loss, gradient or weight that is not finite stops the run before the next checkpoint."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nanogpt.errors import Stopped
from nanogpt.models import GPT, GPTConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.checkpoint import Best, load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.journal import Record
from nanogpt.runs.reporter import Reporter
from nanogpt.runs.run import Run, read_run_config
from nanogpt.train import resume_training, train


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    return RunConfig(
        data=str(text_file),
        out=Path("run"),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16),
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5),
    )


class GradientCorrupter(Reporter):
    """In every step after step `step`, fills the gradient of a parameter with a value."""

    def __init__(self, step: int, name: str, value: float) -> None:
        self.step, self.name, self.value = step, name, value

    def started(self, run: Run) -> None:
        self.run = run

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step != self.step:
            return
        parameter = dict(self.run.model.named_parameters())[self.name]
        parameter.register_hook(lambda gradient: torch.full_like(gradient, self.value))


class WeightCorrupter(GradientCorrupter):
    """After step `step`, fills a parameter with a value."""

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            with torch.no_grad():
                dict(self.run.model.named_parameters())[self.name].fill_(self.value)


def train_until_stopped(config: RunConfig, reporter: Reporter) -> str:
    """Train a run that must stop with an error; return the error message."""
    with pytest.raises(Stopped) as error:
        train(config, reporter)
    assert Path("run/loss.png").exists()
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 5, 20, 30])
def test_the_first_gradient_that_is_not_finite_is_named(
    config: RunConfig, step: int, value: float
) -> None:
    message = train_until_stopped(
        config, GradientCorrupter(step, "blocks.1.feed_forward.2.weight", value)
    )
    rate = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[step // 5])["lr"]
    assert message == (
        f"the gradient of blocks.1.feed_forward.2.weight became {value:g} in step {step + 1}, at "
        f"learning rate {rate:.3g}; the last checkpoint in run is intact. Try a "
        f"lower --optim.lr or a longer --optim.warmup, for example: nanogpt train --resume run "
        f"--optim.lr 0.0025"
    )


def test_the_first_bad_gradient_of_the_backward_pass_is_named(config: RunConfig) -> None:
    class SeveralGradientsCorrupter(GradientCorrupter):
        def recorded(self, record: Record, best: Best | None) -> None:
            for self.name in (
                "blocks.0.norm1.bias",
                "blocks.1.norm1.bias",
                "position_embedding.weight",
            ):
                super().recorded(record, best)

    message = train_until_stopped(config, SeveralGradientsCorrupter(20, "", float("nan")))
    assert message.startswith(
        "the gradient of blocks.1.norm1.bias became nan in step 21, at learning"
    )


@pytest.mark.parametrize("step", [10, 20])
def test_a_bad_loss_is_named_before_bad_gradients(config: RunConfig, step: int) -> None:
    message = train_until_stopped(config, WeightCorrupter(step, "norm.weight", float("nan")))
    assert message.startswith(f"the loss became nan in step {step + 1}, at learning rate ")


def test_weights_that_are_not_finite_are_not_saved(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last step before a checkpoint, the optimizer makes a parameter infinite."""

    class LateWeightCorrupter(WeightCorrupter):
        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == 20:
                optimizer = self.run.state.optimizers[0]
                monkeypatch.setattr(optimizer, "step", partial(self.corrupt, optimizer.step))

        def corrupt(self, step: Callable[[Tensor], None], rate: Tensor) -> None:
            step(rate)
            if self.run.state.step == 39:
                with torch.no_grad():
                    dict(self.run.model.named_parameters())[self.name].fill_(self.value)

    message = train_until_stopped(
        config, LateWeightCorrupter(0, "token_embedding.weight", float("inf"))
    )
    assert message.startswith("token_embedding.weight became inf in step 40, at learning rate ")
    for checkpoint, step in (("last", 20), ("best", 20)):
        loaded = load_checkpoint(Path("run", checkpoint))
        assert loaded.step == step
        assert all(p.isfinite().all() for p in loaded.model.parameters())
    advice = re.search(r"--optim.lr (\S+)$", message)
    assert advice
    lower = replace(config.optim, lr=float(advice[1]))
    assert (
        resume_training(Path("run"), replace(read_run_config(Path("run")), optim=lower)).last.step
        == 60
    )


def test_a_far_too_high_learning_rate_is_explained(config: RunConfig) -> None:
    too_high = OptimConfig(lr=1e30, warmup=0, grad_clip=0.0)
    message = train_until_stopped(replace(config, optim=too_high), Reporter())
    assert re.match(r".* became (nan|inf|-inf) in step 2, at learning rate 9\.99e\+29; ", message)
    assert "a longer --optim.warmup, --optim.grad-clip 1, for example" in message
    assert load_checkpoint("run/last").step == 0


class EvaluationCorrupter(Reporter):
    """Makes the logits NaN in evaluation mode, but not in training mode."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, run: Run) -> None:
        self.run = run

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            assert isinstance(self.run.model, GPT)
            self.run.model.register_forward_hook(
                lambda model, _, out: out if model.training else out * float("nan")
            )


def test_weights_whose_loss_is_not_finite_are_not_saved(config: RunConfig) -> None:
    """All weights and the last training loss are finite, but the validation loss is not."""
    message = train_until_stopped(config, EvaluationCorrupter(20))
    assert message.startswith("the validation loss became nan in step 40, at learning rate ")
    assert load_checkpoint("run/last").step == 20


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before a save uses one block of text, so it may miss an error. Here, it is off."""
    monkeypatch.setattr("nanogpt.runs.finite.FiniteCheck.check_model", lambda _: None)
    message = train_until_stopped(config, EvaluationCorrupter(0))
    assert message.startswith("the validation loss became nan in step 20")


def test_a_bad_gradient_is_found_between_rare_log_lines(config: RunConfig) -> None:
    rare = TrainConfig(steps=400, batch_size=8, eval_every=400, log_every=400)
    message = train_until_stopped(
        replace(config, train=rare), GradientCorrupter(0, "norm.weight", float("nan"))
    )
    assert message.startswith("the gradient of norm.weight became nan in step 1, ")
    assert load_checkpoint("run/last").step == 0


def test_float16_skips_steps_with_an_overflow(config: RunConfig) -> None:
    class Overflow(Reporter):
        def started(self, run: Run) -> None:
            self.run = run

        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == 20:
                assert self.run.state.scale
                self.run.state.scale.scale = 1e38  # far too high: the next steps overflow

    reporter = Overflow()
    result = train(replace(config, precision="float16"), reporter)
    assert result.last.step == 60
    assert result.last.train_loss is not None
    assert result.last.train_loss < 2.4
    assert reporter.run.state.scale
    assert reporter.run.state.scale.scale < 1e38


def test_an_overflow_in_one_gradient_skips_the_step_of_all_optimizers(config: RunConfig) -> None:
    """Neither of the two optimizers changes a weight or its own state."""

    class Overflow(Reporter):
        def started(self, run: Run) -> None:
            self.run, self.before, self.after = run, tensors(run), tensors(run)
            block = run.model.get_submodule("blocks.0.attention.qk")
            assert isinstance(block.weight, nn.Parameter)
            block.weight.register_hook(self.corrupt)

        def corrupt(self, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf") if self.run.state.step == 7 else gradient

        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == 7:
                self.before = tensors(self.run)
            if record.step == 8:
                self.after = tensors(self.run)

    def tensors(run: Run) -> dict[str, torch.Tensor]:
        state = {**run.model.state_dict(), **run.state.tensors()}
        copies = {name: t.clone() for name, t in state.items()}
        return {n: t for n, t in copies.items() if not n.startswith(("random", "losses"))}

    model = ModernConfig(n_layer=2, n_head=2, n_embd=32, block_size=16)
    settings = replace(config.train, steps=20, log_every=1)
    reporter = Overflow()
    optim = OptimConfig("muon", warmup=0)
    train(replace(config, precision="float16", model=model, optim=optim, train=settings), reporter)
    assert reporter.before.keys() == reporter.after.keys()
    for name, tensor in reporter.before.items():
        assert torch.equal(tensor, reporter.after[name]), name
    for name, tensor in tensors(reporter.run).items():
        assert not torch.equal(tensor, reporter.after[name]), name


def test_float16_stops_if_every_step_overflows(config: RunConfig) -> None:
    config = replace(config, precision="float16", train=replace(config.train, eval_every=60))
    message = train_until_stopped(config, GradientCorrupter(5, "norm.weight", float("inf")))
    assert message.startswith("the loss scale became ")
    assert "--precision float32" in message
