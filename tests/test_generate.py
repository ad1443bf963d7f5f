"""Sampling: its filters against plain loops, its loop against the model."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.errors import Stopped, UserError
from nanogpt.generate import (
    DECODE_AHEAD,
    Sampler,
    Sampling,
    draw,
    generate,
    generators,
    penalised,
    probabilities,
)
from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Model, Modern, ModernConfig

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 7}


def random_model(kind: str) -> Model:
    """One of every kind, with weights that make it sure of itself."""
    torch.manual_seed(1)
    every: dict[str, Model] = {
        "gpt": GPT(GPTConfig(**SHAPE)),
        "modern": Modern(ModernConfig(**SHAPE)),
        "bigram": Bigram(BigramConfig(vocab_size=7, block_size=12)),
    }
    with torch.no_grad():
        for parameter in every[kind].parameters():
            parameter.normal_(std=0.5)
    return every[kind].eval()


@pytest.fixture(params=["gpt", "modern", "bigram"])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(request.param)


def write(model: Model, start: list[int], n: int, seed: int = 0, **how: Any) -> list[int]:
    return [tokens[0] for tokens in generate(model, [start], n, Sampling(**how), seed)]


def written_out(model: Model, tokens: list[int], n: int) -> list[int]:
    """The likeliest token n times, each from the whole text; past the context as is documented."""
    seen, written = list(tokens), []
    for _ in range(n):
        if len(seen) > 12:
            seen = seen[-9:]
        with torch.no_grad():
            written.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        seen.append(written[-1])
    return written


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
    st.floats(0.01, 1),
)
def test_the_filters_are_what_is_written_out(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    double = torch.tensor([logits], dtype=torch.float64)
    found = probabilities(double, Sampling(1.0, temperature, top_k, top_p))[0]
    expected = reference(logits, temperature, top_k, top_p)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)
    found = probabilities(double, Sampling(1.0, temperature, top_k, top_p, min_p))[0]
    expected = [x if x >= min_p * max(expected) * (1 - 1e-12) else 0.0 for x in expected]
    expected = [x / sum(expected) for x in expected]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    st.floats(0, 100).filter(lambda t: t == 0 or t > 1e-6),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(1e-6, 1),
    st.none() | st.floats(1e-6, 1),
)
def test_there_is_always_something_to_draw(
    logits: list[float],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    p = probabilities(torch.tensor([logits]), Sampling(1.0, temperature, top_k, top_p, min_p))[0]
    assert torch.isfinite(p).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    # Of those that are the likeliest once they are rounded, at least one stays.
    plain = probabilities(torch.tensor([logits]), Sampling(1.0, temperature))[0]
    assert p[plain == plain.max()].max() > 0


def test_without_filters_it_is_the_softmax() -> None:
    logits = torch.randn(3, 9)
    torch.testing.assert_close(probabilities(logits, Sampling()), logits.softmax(-1))


def test_top_p_stops_as_soon_as_it_is_reached() -> None:
    halves = torch.zeros(1, 2)
    assert probabilities(halves, Sampling(top_p=0.5)).tolist() == [[1.0, 0.0]]
    assert probabilities(halves, Sampling(top_p=0.6)).tolist() == [[0.5, 0.5]]


def test_top_p_keeps_more_the_larger_it_is() -> None:
    logits: Tensor = torch.randn(50, 20)
    kept = [(probabilities(logits, Sampling(top_p=p)) > 0).sum(-1) for p in (0.1, 0.5, 0.9, 1.0)]
    for fewer, more in pairwise(kept):
        assert (fewer <= more).all()
    assert (kept[-1] == 20).all()


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True, width=32)
)
def test_a_draw_is_where_the_sum_passes_the_number(weights: list[float], number: float) -> None:
    p = torch.tensor([weights])
    if p.sum() > 1e-3:
        token = int(draw(p, torch.tensor([number])))
        total = p[0].cumsum(0)
        assert p[0, token] > 0
        threshold = float(torch.tensor(number)) * float(total[-1])
        assert total[token] >= threshold - 1e-6
        assert token == 0 or total[token - 1] <= threshold + 1e-6


def test_tokens_come_as_often_as_the_model_expects_them() -> None:
    model = Bigram(BigramConfig(3))
    expected = torch.tensor([0.6, 0.3, 0.1])
    model.table.weight.data = expected.log().expand(3, 3).clone()
    counts = Counter(write(model, [0], 3000))
    for token in range(3):
        assert counts[token] / 3000 == pytest.approx(expected[token].item(), abs=0.03)


@pytest.mark.parametrize("start", [1, 5, 11, 12, 20])
def test_greedy_is_the_model_without_a_cache(model: Model, start: int) -> None:
    """Until the context is full, and past it, where the oldest quarter is forgotten at a time."""
    tokens = [i * i % 7 for i in range(start)]
    assert write(model, tokens, 50, temperature=0) == written_out(model, tokens[-12:], 50)


def test_top_k_leaves_out_the_least_likely_alone() -> None:
    p = probabilities(torch.tensor([[3.0, 1.0, 2.0]]), Sampling(top_k=2))[0]
    assert (p > 0).tolist() == [True, False, True]
    assert probabilities(torch.tensor([[3.0, 1.0, 2.0]]), Sampling(top_k=3)).min() > 0


class _Eager:
    """What a CudaGraph does, done at once."""

    def run(self, work: Callable[[], None]) -> None:
        work()


@pytest.mark.parametrize("steps", [[100], [1, 15, 17, 67], [100] * 2])
def test_steps_ahead_of_what_was_looked_at_draw_the_same(model: Model, steps: list[int]) -> None:
    """As on a GPU, and past the end of the context."""
    texts, sampling = [[1, 2, 3], [4], list(range(6)) * 3], Sampling(repetition_penalty=1.1)
    straight = Sampler(model, texts, sampling, generators(1, 3), logprobs=True)
    ahead = Sampler(model, texts, sampling, generators(1, 3), logprobs=True)
    ahead.graph = _Eager()  # type: ignore[assignment]
    found = [step for n in steps for step in ahead.take(n)]
    assert found == [*straight.take(sum(steps))]
    assert ahead.contexts == straight.contexts
    assert ahead.in_flight == 0


def test_every_text_of_a_batch_goes_its_own_way(model: Model) -> None:
    """Of other lengths, at other times past the context."""
    starts = [[1, 2], [3, 4, 5, 6, 0], [1] * 12, [2]]
    together = [*generate(model, starts, 40, Sampling(temperature=0), 0)]
    for i, start in enumerate(starts):
        # When another context is full, all are read anew, which changes nothing.
        assert [tokens[i] for tokens in together] == write(model, start, 40, temperature=0)


def test_the_same_seed_writes_the_same_alone_and_beside_others(model: Model) -> None:
    alone = write(model, [1], 40, seed=3)
    assert alone == write(model, [1], 40, seed=3) != write(model, [1], 40, seed=4)
    rows = [*generate(model, [[1], [1], [2, 3]], 40, seed=3)]
    assert [row[0] for row in rows] == alone != [row[1] for row in rows]


def test_the_global_generator_is_left_alone(model: Model) -> None:
    torch.manual_seed(9)
    undisturbed = torch.rand(1)
    torch.manual_seed(9)
    write(model, [1], 5)
    assert torch.rand(1) == undisturbed


def test_logprobs_are_the_model_s_own(model: Model) -> None:
    """Before temperature and filters, and past the context, too."""
    sampler = Sampler(model, [[1, 2]], Sampling(temperature=0.5, top_k=3), generators(1, 1), True)
    seen = [1, 2]
    for (token,), logprobs in sampler.take(30):
        assert logprobs is not None
        if len(seen) > 12:
            seen = seen[-9:]
        with torch.no_grad():
            expected = model(torch.tensor([seen]))[0, -1].log_softmax(-1)[token].item()
        assert logprobs[0] == pytest.approx(expected, abs=1e-5)
        seen.append(token)


def test_a_penalty_moves_every_logit_down() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalised(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0]]


def test_a_repetition_penalty_is_what_is_written_out(model: Model) -> None:
    tokens, penalty = [1, 2], 1.7
    seen = list(tokens)
    for token in write(model, tokens, 10, temperature=0, repetition_penalty=penalty):
        with torch.no_grad():
            logits = model(torch.tensor([seen]))[0, -1].tolist()
        for i in set(seen):
            logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
        assert token == max(range(7), key=logits.__getitem__)
        seen.append(token)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top-k is 0: it must be at least 1"),
        ({"top_k": -3}, "top-k is -3: it must be at least 1"),
        ({"top_p": 0.0}, "top-p is 0.0: it must be more than 0 and at most 1"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"min_p": 0.0}, "min-p is 0.0: it must be more than 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty is 0.0: it must be more than 0"),
        ({"repetition_penalty": math.inf}, "repetition-penalty is inf"),
    ],
)
def test_what_cannot_be_sampled_with_is_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Sampling(**how)


def test_there_is_no_dropout_in_what_it_writes() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=7, dropout=0.5))
    model.train()
    text = write(model, [1], 30, temperature=0)
    assert text == write(model.eval(), [1], 30, temperature=0)
    assert text == write(model.train(), [1], 30, temperature=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_text(value: float, temperature: float) -> None:
    model = random_model("gpt")
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.token_embedding.weight[3] = value  # one token of seven is enough
    with pytest.raises(Stopped, match="the model's logits are not finite, so there is nothing"):
        write(model, [1], 1, temperature=temperature)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gpt", "modern", "bigram"])
def test_a_gpu_writes_what_a_cpu_writes(kind: str) -> None:
    """Captured and replayed, past the context, with all filters; the same numbers are drawn."""
    how = Sampling(1.1, 0.9, 6, 0.95, 0.01)
    starts = [[1, 2], [3, 4, 5], [6] * 12]
    here = [*generate(random_model(kind), starts, 3 * DECODE_AHEAD + 5, how)]
    assert [*generate(random_model(kind).cuda(), starts, 3 * DECODE_AHEAD + 5, how)] == here
    greedy = Sampling(temperature=0)
    here = [*generate(random_model(kind), starts, 50, greedy)]
    assert [*generate(random_model(kind).cuda(), starts, 50, greedy)] == here
