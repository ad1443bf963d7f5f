"""Parameter groups, schedule and optimizers against their formulas."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig
from nanogpt.optim import (
    OptimConfig,
    build_optimizer,
    gradient_norms,
    learning_rate,
    parameter_groups,
)

GPT_CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)


@pytest.mark.parametrize("model", [GPT(GPT_CONFIG), Bigram(BigramConfig(7))], ids=["gpt", "bigram"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_every_parameter_is_in_exactly_one_group(model: nn.Module, optimizer: str) -> None:
    built = build_optimizer(model, OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]
    grouped = [id(p) for group in built.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_matrices_decay_and_nothing_else() -> None:
    model = GPT(GPT_CONFIG)
    decays = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, 0.1)
        for p in group["params"]  # type: ignore[attr-defined]
    }
    for name, parameter in model.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        assert decays[id(parameter)] == (0.0 if vector else 0.1), name


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_steps_follow_the_papers(kind: str) -> None:
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2."""
    config = OptimConfig(optimizer=kind, lr=0.1, beta1=0.8, beta2=0.9, weight_decay=0.5)  # type: ignore
    layer = nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer(layer, config)
    weights = layer.weight.detach().clone().double()
    m = v = torch.zeros(2, 3, dtype=torch.float64)
    for t in range(1, 6):
        gradient = torch.randn(2, 3)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m = 0.8 * m + 0.2 * g
        v = 0.9 * v + 0.1 * g**2
        if kind == "adamw":
            weights -= 0.1 * 0.5 * weights
        weights -= 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
        torch.testing.assert_close(layer.weight.detach().double(), weights, atol=1e-5, rtol=1e-5)


def test_the_rate_rises_then_follows_a_cosine_down() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup=10)
    rates = [learning_rate(step, 110, config) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.6)  # half way
    assert rates[35] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_the_cosine_may_end_before_the_run_or_after_it() -> None:
    planned = OptimConfig(lr=1.0, min_lr=0.2, warmup=10, decay_steps=110)
    as_long = OptimConfig(lr=1.0, min_lr=0.2, warmup=10)
    for steps in (50, 110, 300):
        rates = [learning_rate(step, steps, planned) for step in range(steps)]
        assert rates[:110] == [learning_rate(step, 110, as_long) for step in range(min(steps, 110))]
        assert rates[110:] == [pytest.approx(0.2)] * (steps - len(rates[:110]))


def test_gradients_are_measured_and_then_scaled_as_torch_does_it() -> None:
    for max_norm in (0.5, 100.0, 0.0):
        one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        expected = torch.stack([p.grad.norm() for p in one.parameters() if p.grad is not None])
        assert torch.equal(gradient_norms(list(one.parameters()), max_norm), expected)
        if max_norm:
            nn.utils.clip_grad_norm_(other.parameters(), max_norm)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    config = OptimConfig(lr=1.0, warmup=100)
    assert learning_rate(0, 5, config) < learning_rate(5, 5, config) < 1.0


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("lr", 0.0, "lr is 0.0: it must be more than 0"),
        ("lr", math.nan, "lr is nan"),
        ("weight_decay", -1.0, "weight_decay is -1.0: it must be at least 0"),
        ("beta2", 1.0, "beta2 is 1.0: it must be at least 0 and less than 1"),
    ],
)
def test_an_impossible_setting_is_named(field: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(OptimConfig(), **{field: value})  # type: ignore[arg-type]
