"""Sampling: its filters against plain loops, its loop against the model."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.errors import Stopped, UserError
from nanogpt.generate import generate, probabilities
from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig


@pytest.fixture
def model() -> GPT:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def write(model: GPT | Bigram, start: list[int], n: int, seed: int = 0, **how: object) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens = generate(model, torch.tensor([start]), n, generator=generator, **how)  # type: ignore
    return [int(token) for token in tokens]


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """The same filters, written out."""
    top = max(logits)
    p = [math.exp((logit - top) / temperature) for logit in logits]
    kth = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
    p = [x if logit >= kth else 0.0 for x, logit in zip(p, logits, strict=True)]
    p = [x / sum(p) for x in p]
    kept, sum_kept = [0.0] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if sum_kept >= top_p:
            break
        kept[i] = p[i]
        sum_kept += p[i]
    return [x / sum(kept) for x in kept]


# Logits that differ at all differ visibly: 0 and 1e-20 are a tie once the largest is subtracted.
visible = st.integers(-1280, 1280).map(lambda n: n / 64)


@given(
    st.lists(visible, min_size=1, max_size=12, unique=True),
    st.floats(0.25, 4),
    st.integers(1, 15),
    st.floats(0.05, 0.95),
)
def test_the_filters_are_what_is_written_out(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    double = torch.tensor([logits], dtype=torch.float64)
    found = probabilities(double, temperature, top_k, top_p)[0]
    expected = torch.tensor(reference(logits, temperature, top_k, top_p), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    st.floats(1e-6, 100),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(1e-6, 1),
)
def test_there_is_always_something_to_draw(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    p = probabilities(torch.tensor([logits]), temperature, top_k, top_p)[0]
    assert torch.isfinite(p).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)


def test_without_filters_it_is_the_softmax() -> None:
    logits = torch.randn(3, 9)
    torch.testing.assert_close(probabilities(logits, 1.0), logits.softmax(-1))


def test_temperature_zero_takes_the_likeliest(model: GPT) -> None:
    tokens = [1, 2]
    for token in write(model, tokens, 6, temperature=0):
        assert token == model(torch.tensor([tokens]))[0, -1].argmax().item()
        tokens.append(token)


def test_the_same_seed_writes_the_same(model: GPT) -> None:
    assert write(model, [1], 40, seed=3) == write(model, [1], 40, seed=3)
    assert write(model, [1], 40, seed=3) != write(model, [1], 40, seed=4)


def test_the_global_generator_is_left_alone(model: GPT) -> None:
    torch.manual_seed(9)
    undisturbed = torch.rand(1)
    torch.manual_seed(9)
    write(model, [1], 5)
    assert torch.rand(1) == undisturbed


def test_past_the_context_the_window_slides(model: GPT) -> None:
    tokens = [1, 2, 3]
    for token in write(model, tokens, 30, temperature=0):
        assert token == model(torch.tensor([tokens[-8:]]))[0, -1].argmax().item()
        tokens.append(token)


def test_a_prompt_longer_than_the_context_is_cut_at_its_start(model: GPT) -> None:
    long = [1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]
    assert write(model, long, 9) == write(model, long[-8:], 9)


def test_tokens_come_as_often_as_the_model_expects_them() -> None:
    model = Bigram(BigramConfig(3))
    expected = torch.tensor([0.6, 0.3, 0.1])
    model.table.weight.data = expected.log().expand(3, 3).clone()
    counts = Counter(write(model, [0], 3000))
    for token in range(3):
        assert counts[token] / 3000 == pytest.approx(expected[token].item(), abs=0.03)


def test_every_row_of_a_batch_goes_its_own_way(model: GPT) -> None:
    starts = torch.tensor([[1, 2], [3, 4]])
    together = torch.stack(list(generate(model, starts, 10, temperature=0)))
    assert together.T.tolist() == [
        write(model, [1, 2], 10, temperature=0),
        write(model, [3, 4], 10, temperature=0),
    ]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top-k is 0: it must be at least 1"),
        ({"top_p": 0.0}, "top-p is 0.0: it must be more than 0 and at most 1"),
        ({"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_what_cannot_be_sampled_with_is_refused(model: GPT, how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        write(model, [1], 1, **how)


def test_top_p_stops_as_soon_as_it_is_reached() -> None:
    halves = torch.zeros(1, 2)
    assert probabilities(halves, 1.0, None, 0.5).tolist() == [[1.0, 0.0]]
    assert probabilities(halves, 1.0, None, 0.6).tolist() == [[0.5, 0.5]]


def test_there_is_no_dropout_in_what_it_writes() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=7, dropout=0.5))
    model.train()
    text = write(model, [1], 30, temperature=0)
    assert text == write(model.eval(), [1], 30, temperature=0)
    assert text == write(model.train(), [1], 30, temperature=0)


def test_top_p_keeps_more_the_larger_it_is() -> None:
    logits: Tensor = torch.randn(50, 20)
    kept = [(probabilities(logits, 1.0, None, p) > 0).sum(-1) for p in (0.1, 0.5, 0.9, 1.0)]
    for fewer, more in pairwise(kept):
        assert (fewer <= more).all()
    assert (kept[-1] == 20).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_text(
    model: GPT, value: float, temperature: float
) -> None:
    with torch.no_grad():
        model.token_embedding.weight[3] = value  # one token of seven is enough
    with pytest.raises(Stopped, match="the model's logits are not finite, so there is nothing"):
        write(model, [1], 1, temperature=temperature)
