"""Optimizers, learning rates and weight averages, compared with their formulas and with torch."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn

from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Modern, ModernConfig
from nanogpt.muon import Muon, orthogonalise
from nanogpt.optim import (
    Adam,
    OptimConfig,
    build_optimizers,
    clip_gradients,
    get_ema_decay,
    get_learning_rate,
    update_average,
)

GPT_CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)


MODELS = {
    "gpt": GPT(GPT_CONFIG),
    "modern": Modern(ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)),
    "bigram": Bigram(BigramConfig(7)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon"])
def test_every_parameter_is_in_exactly_one_optimizer(
    model: nn.Module, optimizer: Literal["adamw", "adam", "muon"]
) -> None:
    built = build_optimizers(model, OptimConfig(optimizer))
    moved = [id(p) for one in built for p in one.parameters]
    assert sorted(moved) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt", "modern"])
def test_muon_has_the_matrices_of_the_blocks(name: str) -> None:
    adam, muon = build_optimizers(MODELS[name], OptimConfig("muon"))
    assert isinstance(adam, Adam)
    assert isinstance(muon, Muon)
    moved = {id(p) for p in muon.parameters}
    names = {n for n, p in MODELS[name].named_parameters() if id(p) in moved}
    linear = {n for n, m in MODELS[name].named_modules() if isinstance(m, nn.Linear)} - {"head"}
    assert names == {f"{n}.weight" for n in linear}
    assert len(names) == {"gpt": 8, "modern": 10}[name]


def test_weight_decay_applies_only_to_matrices() -> None:
    """If all gradients are zero, a step applies only the weight decay."""
    model = GPT(GPT_CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    (adam,) = build_optimizers(model, OptimConfig(weight_decay=0.5))
    adam.step(torch.tensor(0.1))
    for name, parameter in model.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        torch.testing.assert_close(parameter.detach(), before[name] * (1.0 if vector else 0.95))


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_steps_follow_the_papers(kind: Literal["adamw", "adam"]) -> None:
    """Adam: Kingma & Ba 2015, algorithm 1. AdamW: Loshchilov & Hutter 2019, algorithm 2."""
    config = OptimConfig(kind, beta1=0.8, beta2=0.9, weight_decay=0.5)
    layer = nn.Linear(3, 2, bias=False)
    (optimizer,) = build_optimizers(layer, config)
    weights = layer.weight.detach().clone().double()
    m = v = torch.zeros(2, 3, dtype=torch.float64)
    for t in range(1, 6):
        gradient = torch.randn(2, 3)
        layer.weight.grad = gradient.clone()
        rate = 0.1 / t
        optimizer.step(torch.tensor(rate))
        g = gradient.double()
        m = 0.8 * m + 0.2 * g
        v = 0.9 * v + 0.1 * g**2
        if kind == "adamw":
            weights -= rate * 0.5 * weights
        weights -= rate * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
        torch.testing.assert_close(layer.weight.detach().double(), weights, atol=1e-5, rtol=1e-5)


def test_epsilon_limits_the_step_of_a_small_gradient() -> None:
    """After one step, m̂ / (√v̂ + ε) is g / (|g| + ε)."""
    weight = nn.Parameter(torch.zeros(3))
    adam = Adam({"weight": weight}, eps=0.5)
    weight.grad = torch.tensor([0.5, -1.5, 0.0])
    adam.step(torch.tensor(1.0))
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.5, 0.75, 0.0]))


def test_adamw_equals_the_adamw_of_torch() -> None:
    """The weights are equal bit for bit, because both optimizers call the same kernel."""
    ours, theirs = GPT(GPT_CONFIG), GPT(GPT_CONFIG)
    theirs.load_state_dict(ours.state_dict())
    (adam,) = build_optimizers(ours, OptimConfig(beta1=0.8, beta2=0.9, weight_decay=0.5))
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    groups = [
        {"params": [q for _, q in pairs if q.dim() >= 2], "weight_decay": 0.5},
        {"params": [q for _, q in pairs if q.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.125, betas=(0.8, 0.9), fused=True)
    for _ in range(5):
        for p, q in pairs:
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        adam.step(torch.tensor(0.125))
        reference.step()
    for p, q in pairs:
        assert torch.equal(p, q)


def make_matrices(*shapes: tuple[int, int]) -> dict[str, nn.Parameter]:
    return {str(i): nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("shape", [(6, 6), (24, 8), (8, 24)])
def test_orthogonalise_is_near_the_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    """The result is U S Vᵀ: U and V come from the SVD, and the values in S are from 0.6 to 1.25."""
    stack = torch.randn(5, *shape, dtype=torch.float64) * 10.0 ** torch.arange(-2, 3)[:, None, None]
    found = orthogonalise(stack, torch.float64)
    U, _, Vh = torch.linalg.svd(stack, full_matrices=False)
    values = U.mT @ found @ Vh.mT
    off = values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-9, rtol=0)  # same U and V
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < diagonal.min() < diagonal.max() < 1.25


def test_a_gradient_of_zero_causes_no_division_by_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_a_stack_gives_the_same_results_as_single_matrices() -> None:
    stack = torch.randn(3, 4, 6)
    one_by_one = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), one_by_one)


@pytest.mark.parametrize("normalise_rows", [False, True])
@pytest.mark.parametrize("cautious", [False, True])
def test_muon_follows_the_formulas(normalise_rows: bool, cautious: bool) -> None:
    """The formulas compute Muon (Jordan et al. 2024) in float64, one matrix at a time."""
    ours = make_matrices((4, 4), (8, 4), (4, 4), (4, 12))
    muon = Muon(ours, 0.9, 0.5, torch.float32, None, normalise_rows, cautious)
    weights = [p.detach().double() for p in ours.values()]
    means = [torch.zeros_like(w) for w in weights]
    squares = [torch.zeros(len(w), dtype=torch.float64) for w in weights]
    for rate in (0.1, 0.2, 0.05, 0.1):
        for i, p in enumerate(ours.values()):
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            means[i] = 0.9 * means[i] + 0.1 * g
            x = 0.1 * g + 0.9 * means[i]
            x = x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            if normalise_rows:  # Li et al. 2025, algorithm 1
                norm = x.norm()
                for row in range(len(x)):
                    squares[i][row] = 0.95 * squares[i][row] + 0.05 * x[row].square().mean()
                    x[row] = x[row] / squares[i][row].sqrt()
                x = x * norm / x.norm()
            decay = rate * 0.5 * weights[i]
            if cautious:  # Chen et al. 2025, algorithm 1
                decay[x.sign() != weights[i].sign()] = 0
            scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
            weights[i] = weights[i] - decay - rate * scale * x
        muon.step(torch.tensor(rate))
    for p, w in zip(ours.values(), weights, strict=True):
        torch.testing.assert_close(p.detach().double(), w, atol=1e-4, rtol=1e-4)


def test_stacked_matrices_change_like_separate_parameters() -> None:
    """Three (24, 8) parameters: two are stacks of three (8, 8) matrices; one is a single matrix."""
    apart = make_matrices(*[(8, 8)] * 6, (24, 8))
    pieces, whole = list(apart.values())[:6], apart["6"]
    qkv = [nn.Parameter(torch.cat([*pieces[i : i + 3]]).detach()) for i in (0, 3)]
    together = {"qkv": qkv[0], "whole": nn.Parameter(whole.detach().clone()), "other": qkv[1]}
    one = Muon(apart, weight_decay=0.1, precision=torch.float32)
    other = Muon(
        together, weight_decay=0.1, precision=torch.float32, stacked={"qkv": 3, "other": 3}
    )
    for _ in range(3):
        for p in apart.values():
            p.grad = torch.randn_like(p)
        for i, p in enumerate(qkv):
            p.grad = torch.cat([q.grad for q in pieces[3 * i : 3 * i + 3] if q.grad is not None])
        together["whole"].grad = whole.grad
        one.step(torch.tensor(0.02))
        other.step(torch.tensor(0.02))
    for i, p in enumerate(qkv):
        torch.testing.assert_close(p.detach(), torch.cat([*pieces[3 * i : 3 * i + 3]]).detach())
    torch.testing.assert_close(together["whole"], whole)


@pytest.mark.parametrize(("kind", "fused", "n"), [("gpt", "qkv", 3), ("modern", "qk", 2)])
def test_muon_treats_queries_keys_and_values_as_separate_matrices(
    kind: str, fused: str, n: int
) -> None:
    _, muon = build_optimizers(MODELS[kind], OptimConfig("muon"))
    assert isinstance(muon, Muon)
    stacks = muon.stacks.values()
    parts = {id(muon.parameters[i]): n for which in stacks for i, n in which.items()}
    named = {id(p): name for name, p in MODELS[kind].named_parameters()}
    assert parts
    for key, found in parts.items():
        assert found == (n if f".{fused}." in named[key] else 1), named[key]


def test_a_parameter_is_split_only_if_the_model_says_so() -> None:
    class OwnModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.my_qkv_layer = nn.Linear(4, 12, bias=False)
            self.head = nn.Linear(12, 3)

        def matrices(self) -> dict[str, int]:
            return {"my_qkv_layer.weight": 1}

    adam, muon = build_optimizers(OwnModel(), OptimConfig("muon"))
    assert isinstance(muon, Muon)
    assert dict(muon.stacks) == {(12, 4): {0: 1}}
    assert [p.shape for p in adam.parameters] == [(3, 12), (3,)]


def test_muon_equals_the_muon_of_torch() -> None:
    shapes = (16, 16), (48, 16), (16, 16), (16, 64), (64, 16)
    ours = make_matrices(*shapes)
    theirs = [nn.Parameter(p.detach().clone()) for p in ours.values()]
    muon = Muon(ours, momentum=0.9, weight_decay=0.5, precision=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(5):
        for p, q in zip(ours.values(), theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step(torch.tensor(0.1))
        reference.step()
    for p, q in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(p, q, atol=0.02, rtol=0)  # the order of bfloat16 sums differs


def test_the_average_of_the_weights_follows_the_formula() -> None:
    weights = [*make_matrices((2, 3), (4, 1)).values()]
    means = [p.detach().clone() for p in weights]
    expected = [mean.double() for mean in means]
    for _ in range(10):
        for p in weights:
            p.data.normal_()
        update_average(means, weights, torch.tensor(0.3))
        expected = [0.7 * m + 0.3 * p.double() for m, p in zip(expected, weights, strict=True)]
    for mean, e in zip(means, expected, strict=True):
        torch.testing.assert_close(mean.double(), e.detach())
        assert not mean.requires_grad


def test_the_initial_weights_soon_have_little_effect_on_the_average() -> None:
    decays = [get_ema_decay(step, OptimConfig(ema=0.7)) for step in range(100)]
    assert decays == [min(0.7, (1 + step) / (10 + step)) for step in range(100)]
    assert math.prod(decays[:20]) < 1e-5


@pytest.mark.parametrize("cooldown", [1.0, 0.6, 0.1])
def test_a_linear_schedule_is_constant_and_then_falls_linearly(cooldown: float) -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup=10, schedule="linear", cooldown=cooldown)
    rates = [get_learning_rate(step, 110, config) for step in range(120)]
    bend = round(110 - 100 * cooldown)
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10 : bend + 1] == pytest.approx([1.0] * (bend - 9))
    falling = [0.2 + 0.8 * (110 - step) / (110 - bend) for step in range(bend, 110)]
    assert rates[bend:110] == pytest.approx(falling)
    assert rates[110:] == pytest.approx([0.2] * 10)


def test_the_rate_rises_and_then_falls_like_a_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup=10)
    rates = [get_learning_rate(step, 110, config) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.6)  # halfway through the decay
    assert rates[35] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_the_cosine_may_end_before_the_run_or_after_it() -> None:
    other_length = OptimConfig(lr=1.0, min_lr=0.2, warmup=10, decay_steps=110)
    same_length = OptimConfig(lr=1.0, min_lr=0.2, warmup=10)
    for steps in (50, 110, 300):
        rates = [get_learning_rate(step, steps, other_length) for step in range(steps)]
        assert rates[:110] == [
            get_learning_rate(step, 110, same_length) for step in range(min(steps, 110))
        ]
        assert rates[110:] == [pytest.approx(0.2)] * (steps - len(rates[:110]))


def test_clip_gradients_returns_the_norms_and_clips_like_torch() -> None:
    for max_norm in (0.5, 100.0, 0.0):
        one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        expected = torch.stack([p.grad.norm() for p in one.parameters() if p.grad is not None])
        assert torch.equal(clip_gradients(list(one.parameters()), max_norm), expected)
        if max_norm:
            nn.utils.clip_grad_norm_(other.parameters(), max_norm)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_in_a_run_shorter_than_its_warmup_the_rate_only_rises() -> None:
    config = OptimConfig(lr=1.0, warmup=100)
    assert get_learning_rate(0, 5, config) < get_learning_rate(5, 5, config) < 1.0


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
def test_the_error_names_an_impossible_setting(field: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(OptimConfig(), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_parameter_does_not_change(name: Literal["adamw", "muon"]) -> None:
    model = Modern(ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=5))
    frozen = {"token_embedding.weight", *[*model.matrices()][:2]}
    named = dict(model.named_parameters())
    for each in frozen & named.keys():
        named[each].requires_grad_(False)
    before = {each: p.detach().clone() for each, p in named.items()}
    optimizers = build_optimizers(model, OptimConfig(optimizer=name))
    tokens = torch.tensor([[0, 1, 2, 3]])
    for _ in range(2):  # in step 1, some gradients are 0, because some weights start at 0
        nn.functional.cross_entropy(model(tokens)[0], tokens[0]).backward()
        for optimizer in optimizers:
            optimizer.step(torch.tensor(0.1))
    changed = {each for each, p in named.items() if not torch.equal(p, before[each])}
    assert changed
    assert not changed & frozen


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_error_names_a_parameter_without_a_gradient(name: Literal["adamw", "muon"]) -> None:
    class OwnModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def matrices(self) -> dict[str, int]:
            return {"unused.weight": 1}

    def step(loss: torch.Tensor) -> None:
        optimizers = build_optimizers(model, OptimConfig(optimizer=name))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step(torch.tensor(0.1))
        model.zero_grad()

    model = OwnModel()
    with pytest.raises(
        ValueError,
        match=r"^unused\.weight has no gradient: use it in the loss, or set its requires_grad to F",
    ):
        step(model.used.weight.sum())
    step(model.used.weight.sum() + model.unused.weight.sum())
    model.unused.weight.requires_grad = False
    step(model.used.weight.sum())


def test_no_optimizer_is_built_for_parameters_that_are_all_frozen() -> None:
    def build_kinds(model: nn.Module) -> list[type]:
        return [type(each) for each in build_optimizers(model, OptimConfig(optimizer="muon"))]

    for frozen, kinds in (("blocks", [Adam]), ("other", [Muon]), ("none", [Adam, Muon])):
        model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=5))
        for name, parameter in model.named_parameters():
            kind = "blocks" if name in model.matrices() else "other"
            parameter.requires_grad = kind != frozen
        assert build_kinds(model) == kinds
