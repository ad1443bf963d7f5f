"""Parameter groups, schedule and optimizers against their formulas."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Modern, ModernConfig
from nanogpt.optim import (
    Muon,
    OptimConfig,
    build_optimizers,
    follow,
    gradient_norms,
    learning_rate,
    orthogonalise,
    parameter_groups,
    set_rates,
)

GPT_CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)


MODELS = {
    "gpt": GPT(GPT_CONFIG),
    "modern": Modern(ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)),
    "bigram": Bigram(BigramConfig(7)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon"])
def test_every_parameter_is_in_exactly_one_group(model: nn.Module, optimizer: str) -> None:
    built = build_optimizers(model, OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]
    groups = [group for one in built for group in one.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt", "modern"])
def test_muon_has_the_matrices_of_the_blocks(name: str) -> None:
    adam, muon = build_optimizers(MODELS[name], OptimConfig("muon"))
    assert isinstance(adam, torch.optim.Adam)
    assert isinstance(muon, Muon)
    moved = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {n for n, p in MODELS[name].named_parameters() if id(p) in moved}
    linear = {n for n, m in MODELS[name].named_modules() if isinstance(m, nn.Linear)} - {"head"}
    assert names == {f"{n}.weight" for n in linear}
    assert len(names) == 8


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
    (optimizer,) = build_optimizers(layer, config)
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


def matrices(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("shape", [(6, 6), (24, 8), (8, 24)])
def test_what_is_left_is_near_the_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    """U Vᵀ of the singular value decomposition, singular values of 0.7 to 1.2 instead of 1."""
    stack = torch.randn(5, *shape, dtype=torch.float64) * 10.0 ** torch.arange(-2, 3)[:, None, None]
    found = orthogonalise(stack, torch.float64)
    U, _, Vh = torch.linalg.svd(stack, full_matrices=False)
    values = U.mT @ found @ Vh.mT
    off = values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-9, rtol=0)  # U and V are kept
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < diagonal.min() < diagonal.max() < 1.25


def test_a_gradient_of_zero_is_no_division_by_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_stacking_changes_nothing() -> None:
    stack = torch.randn(3, 4, 6)
    one_by_one = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), one_by_one)


def test_muon_is_what_is_written_out() -> None:
    """Jordan et al. 2024, with decoupled decay: one matrix after the other, in float64."""
    ours = matrices((4, 4), (8, 4), (4, 4), (4, 12))
    muon = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.5, precision=torch.float32)
    weights = [p.detach().double() for p in ours]
    means = [torch.zeros_like(w) for w in weights]
    for _ in range(4):
        for i, p in enumerate(ours):
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            means[i] = 0.9 * means[i] + 0.1 * g
            x = 0.1 * g + 0.9 * means[i]
            x = x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
            weights[i] = (1 - 0.1 * 0.5) * weights[i] - 0.1 * scale * x
        muon.step()
    for p, w in zip(ours, weights, strict=True):
        torch.testing.assert_close(p.detach().double(), w, atol=1e-4, rtol=1e-4)


def test_matrices_in_one_parameter_are_moved_as_if_they_were_apart() -> None:
    apart = matrices((8, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 8))
    together = [nn.Parameter(torch.cat([p.detach() for p in apart[i : i + 3]])) for i in (0, 3)]
    one = Muon(apart, weight_decay=0.1, precision=torch.float32)
    other = Muon([{"params": together, "parts": 3}], weight_decay=0.1, precision=torch.float32)
    for _ in range(3):
        for p in apart:
            p.grad = torch.randn_like(p)
        for i, p in enumerate(together):
            p.grad = torch.cat([q.grad for q in apart[3 * i : 3 * i + 3] if q.grad is not None])
        one.step()
        other.step()
    for i, p in enumerate(together):
        pieces = [q.detach() for q in apart[3 * i : 3 * i + 3]]
        torch.testing.assert_close(p.detach(), torch.cat(pieces))


def test_queries_keys_and_values_are_three_matrices_to_muon() -> None:
    _, muon = build_optimizers(MODELS["modern"], OptimConfig("muon"))
    qkv = {id(p) for n, p in MODELS["modern"].named_parameters() if "qkv" in n}
    for group in muon.param_groups:
        for p in group["params"]:
            assert group["parts"] == (3 if id(p) in qkv else 1)


def test_muon_is_that_of_torch() -> None:
    shapes = (16, 16), (48, 16), (16, 16), (16, 64), (64, 16)
    ours = matrices(*shapes)
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.5, precision=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=0.02, rtol=0)  # bfloat16, in another order


def test_muon_leaves_alone_what_has_no_gradient() -> None:
    moved, left = matrices((4, 4), (4, 4))
    before: Tensor = left.detach().clone()
    moved.grad = torch.randn(4, 4)
    Muon([moved, left], weight_decay=0.1).step()
    assert torch.equal(left, before)


def test_the_mean_of_the_weights_is_what_is_written_out() -> None:
    weights = matrices((2, 3), (4, 1))
    means = [p.detach().clone() for p in weights]
    expected = [mean.double() for mean in means]
    for step in range(30):
        decay = min(0.7, (1 + step) / (10 + step))
        for p in weights:
            p.data.normal_()
        follow(means, weights, 0.7, step)
        expected = [
            decay * m + (1 - decay) * p.double() for m, p in zip(expected, weights, strict=True)
        ]
    for mean, e in zip(means, expected, strict=True):
        torch.testing.assert_close(mean.double(), e.detach())
        assert not mean.requires_grad


def test_the_rate_of_muon_follows_that_of_adam() -> None:
    config = OptimConfig("muon", lr=0.1, muon_lr=0.02)
    adam, muon = optimizers = build_optimizers(MODELS["modern"], config)
    set_rates(optimizers, 0.05, config)
    assert [group["lr"] for group in adam.param_groups] == [0.05]
    assert {group["lr"] for group in muon.param_groups} == {0.01}


@pytest.mark.parametrize("cooldown", [1.0, 0.6, 0.1])
def test_a_linear_schedule_is_constant_and_then_falls_in_a_line(cooldown: float) -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup=10, schedule="linear", cooldown=cooldown)
    rates = [learning_rate(step, 110, config) for step in range(120)]
    bend = round(110 - 100 * cooldown)
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10 : bend + 1] == pytest.approx([1.0] * (bend - 9))
    falling = [0.2 + 0.8 * (110 - step) / (110 - bend) for step in range(bend, 110)]
    assert rates[bend:110] == pytest.approx(falling)
    assert rates[110:] == pytest.approx([0.2] * 10)


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
        ("momentum", 1.0, "momentum is 1.0: it must be at least 0 and less than 1"),
        ("muon_lr", 0.0, "muon_lr is 0.0: it must be more than 0"),
        ("cooldown", 0.0, "cooldown is 0.0: it must be more than 0 and at most 1"),
    ],
)
def test_an_impossible_setting_is_named(field: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(OptimConfig(), **{field: value})  # type: ignore[arg-type]
