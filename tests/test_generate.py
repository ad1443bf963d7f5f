"""The filters agree with simple versions of them in Python; a cache changes no token."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.errors import Stopped, UserError
from nanogpt.fast import generation as fast
from nanogpt.generate import (
    Sampling,
    filter_logits,
    generate,
    penalise_seen,
    sample_token,
)
from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Model, Modern, ModernConfig, build

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 7}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("penalty", [1e-300, 1e-39, 1e39, 1e300])
def test_extreme_settings_do_not_end_in_nan(temperature: float, penalty: float) -> None:
    """In float32, some of these temperatures and penalties become 0 or infinite."""
    logits = torch.tensor([[0.0, -2.0, 3.0, 1.0]])
    seen = torch.tensor([[True, True, True, False]])
    lowered = penalise_seen(logits, seen, penalty)
    assert lowered.isfinite().all()
    p = filter_logits(lowered, Sampling(temperature=temperature)).softmax(-1)
    assert p.sum() == pytest.approx(1)
    exact = [x / penalty if x > 0 else x * penalty for x in (0.0, -2.0, 3.0)] + [1.0]
    if temperature < 1:
        assert p.argmax() == exact.index(max(exact))


def test_a_top_p_of_1_removes_nothing() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 8
    filtered = filter_logits(logits, Sampling(top_p=1.0))
    torch.testing.assert_close(filtered.softmax(-1), logits.softmax(-1))
    assert filtered.isfinite().all()


@pytest.mark.parametrize("run", [generate, fast.generate])
def test_a_batch_may_be_empty_but_a_prompt_may_not(run: Callable[..., Iterator[object]]) -> None:
    model = build(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=5))
    assert list(run(model, [], 3)) == []
    with pytest.raises(UserError, match="a prompt has no tokens"):
        list(run(model, [[1], []], 3))


def random_model(kind: str) -> Model:
    """Return a model of this kind; its large weights make its probabilities differ clearly."""
    torch.manual_seed(1)
    every: dict[str, Model] = {
        "gpt": GPT(GPTConfig(**SHAPE)),
        "modern": Modern(ModernConfig(**SHAPE)),
        "skips": Modern(ModernConfig(**SHAPE, activation="swiglu", skips=True)),
        "bigram": Bigram(BigramConfig(vocab_size=7, block_size=12)),
    }
    with torch.no_grad():
        for parameter in every[kind].parameters():
            parameter.normal_(std=0.5)
    return every[kind].eval()


@pytest.fixture(params=["gpt", "modern", "skips", "bigram"])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(request.param)


def filter_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities (B, V) after the filters."""
    return filter_logits(logits, sampling).softmax(-1)


def generate_tokens(
    model: Model, start: list[int], n: int, seed: int = 0, **options: Any
) -> list[int]:
    return [step.tokens[0] for step in generate(model, [start], n, Sampling(**options), seed)]


def generate_without_cache(model: Model, tokens: list[int], n: int) -> list[int]:
    """Generate n tokens greedily without a cache; cut a context of 13 tokens to its last 9."""
    seen, written = list(tokens), []
    for _ in range(n):
        if len(seen) > 12:
            seen = seen[-9:]
        with torch.no_grad():
            written.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        seen.append(written[-1])
    return written


def filter_with_plain_loops(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> list[float]:
    """With plain loops, compute the probabilities after the filters."""
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


# Different multiples of 1/64 stay different after the largest logit is subtracted. Numbers like
# 0 and 1e-20 may become equal.
logit_values = st.integers(-1280, 1280).map(lambda n: n / 64)


@given(
    st.lists(logit_values, min_size=1, max_size=12, unique=True),
    st.floats(0.25, 4),
    st.integers(1, 15),
    st.floats(0.05, 0.95),
    st.floats(0.01, 1),
)
def test_the_filters_equal_plain_loops(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    double = torch.tensor([logits], dtype=torch.float64)
    found = filter_probabilities(
        double, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )[0]
    expected = filter_with_plain_loops(logits, temperature, top_k, top_p)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)
    found = filter_probabilities(
        double, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    )[0]
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
def test_the_filters_always_keep_a_token(
    logits: list[float],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    p = filter_probabilities(
        torch.tensor([logits]),
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
    )[0]
    assert torch.isfinite(p).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    # After rounding, several tokens may have the highest probability; at least one of them is kept.
    plain = filter_probabilities(torch.tensor([logits]), Sampling(temperature=temperature))[0]
    assert p[plain == plain.max()].max() > 0


def test_without_filters_the_probabilities_are_the_softmax() -> None:
    logits = torch.randn(3, 9)
    torch.testing.assert_close(filter_probabilities(logits, Sampling()), logits.softmax(-1))


def test_top_p_keeps_no_more_tokens_than_needed() -> None:
    halves = torch.zeros(1, 2)
    assert filter_probabilities(halves, Sampling(top_p=0.5)).tolist() == [[1.0, 0.0]]
    assert filter_probabilities(halves, Sampling(top_p=0.6)).tolist() == [[0.5, 0.5]]


def test_a_larger_top_p_keeps_at_least_as_many_tokens() -> None:
    logits: Tensor = torch.randn(50, 20)
    kept = [
        (filter_probabilities(logits, Sampling(top_p=p)) > 0).sum(-1) for p in (0.1, 0.5, 0.9, 1.0)
    ]
    for fewer, more in pairwise(kept):
        assert (fewer <= more).all()
    assert (kept[-1] == 20).all()


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=9),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_token_is_sampled_where_cumulative_probability_exceeds_the_random_number(
    weights: list[float], number: float
) -> None:
    p = torch.tensor([weights]) / sum(weights)
    token = int(sample_token(p.log(), Sampling(), torch.tensor([number])))
    cumulative = p[0].cumsum(0)
    assert cumulative[token] >= number - 1e-5
    assert token == 0 or cumulative[token - 1] <= number + 1e-5


def test_token_frequencies_equal_the_probabilities_of_the_model() -> None:
    model = Bigram(BigramConfig(3))
    expected = torch.tensor([0.6, 0.3, 0.1])
    model.table.weight.data = expected.log().expand(3, 3).clone()
    counts = Counter(generate_tokens(model, [0], 3000))
    for token in range(3):
        assert counts[token] / 3000 == pytest.approx(expected[token].item(), abs=0.03)


@pytest.mark.parametrize("start", [1, 5, 11, 12, 20])
def test_greedy_generation_equals_the_model_without_a_cache(model: Model, start: int) -> None:
    """When the context is full, generation drops the oldest quarter of the context."""
    tokens = [i * i % 7 for i in range(start)]
    assert generate_tokens(model, tokens, 50, temperature=0) == generate_without_cache(
        model, tokens[-12:], 50
    )


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(1, 12), st.booleans())
def test_top_k_keeps_exactly_k_tokens_even_with_ties(
    values: list[int], top_k: int, is_bfloat16: bool
) -> None:
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    p = filter_probabilities(torch.tensor([values]).to(dtype).float(), Sampling(top_k=top_k))[0]
    by_rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert p.nonzero().flatten().tolist() == sorted(by_rank[:top_k])


def test_if_tokens_are_equally_likely_top_p_keeps_the_lower_indices() -> None:
    assert filter_probabilities(torch.zeros(1, 4), Sampling(top_p=0.5))[0].tolist() == [
        0.5,
        0.5,
        0,
        0,
    ]


def test_min_p_keeps_every_token_at_its_threshold() -> None:
    p = filter_probabilities(torch.tensor([[0.0, 0.0, -1.0]]), Sampling(min_p=1.0))[0]
    assert p.tolist() == [0.5, 0.5, 0.0]


def test_top_k_removes_only_the_least_likely_tokens() -> None:
    p = filter_probabilities(torch.tensor([[3.0, 1.0, 2.0]]), Sampling(top_k=2))[0]
    assert (p > 0).tolist() == [True, False, True]
    assert filter_probabilities(torch.tensor([[3.0, 1.0, 2.0]]), Sampling(top_k=3)).min() > 0


def test_texts_in_a_batch_do_not_affect_each_other(model: Model) -> None:
    """The prompts have different lengths, so their contexts become full at different times."""
    starts = [[1, 2], [3, 4, 5, 6, 0], [1] * 12, [2]]
    together = [*generate(model, starts, 40, Sampling(temperature=0), 0)]
    for i, start in enumerate(starts):
        # When one context is full, all contexts are prefilled again; the other texts do not change.
        assert [step.tokens[i] for step in together] == generate_tokens(
            model, start, 40, temperature=0
        )


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(model: Model) -> None:
    alone = generate_tokens(model, [1], 40, seed=3)
    assert alone == generate_tokens(model, [1], 40, seed=3)
    assert alone != generate_tokens(model, [1], 40, seed=4)
    rows = [*generate(model, [[1], [1], [2, 3]], 40, seed=3)]
    assert [step.tokens[0] for step in rows] == alone != [step.tokens[1] for step in rows]


def test_generation_does_not_change_the_global_random_generator(model: Model) -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    generate_tokens(model, [1], 5)
    assert torch.rand(1) == expected


def test_logprobs_are_those_of_the_unfiltered_logits(model: Model) -> None:
    """Log-probabilities ignore temperature and filters, even after the context is full."""
    visible = [1, 2]
    sampling = Sampling(temperature=0.5, top_k=3)
    for step in generate(model, [[1, 2]], 30, sampling, seed=1, logprobs=True):
        assert step.logprobs is not None
        if len(visible) > 12:
            visible = visible[-9:]
        with torch.no_grad():
            expected = model(torch.tensor([visible]))[0, -1].log_softmax(-1)[step.tokens[0]].item()
        assert step.logprobs[0] == pytest.approx(expected, abs=1e-5)
        visible.append(step.tokens[0])


def test_a_penalty_lowers_the_logits_of_seen_tokens() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalise_seen(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0]]


def test_a_repetition_penalty_equals_a_plain_loop(model: Model) -> None:
    tokens, penalty = [1, 2], 1.7
    seen = list(tokens)
    for token in generate_tokens(model, tokens, 10, temperature=0, repetition_penalty=penalty):
        with torch.no_grad():
            logits = model(torch.tensor([seen]))[0, -1].tolist()
        for i in set(seen):
            logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
        assert token == max(range(7), key=logits.__getitem__)
        seen.append(token)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0: it must be at least 1"),
        ({"top_k": -3}, "top_k is -3: it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be more than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 0.0}, "min_p is 0.0: it must be more than 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: it must be above 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
    ],
)
def test_invalid_sampling_settings_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Sampling(**options)


def test_generation_uses_no_dropout() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=7, dropout=0.5))
    model.train()
    text = generate_tokens(model, [1], 30, temperature=0)
    assert text == generate_tokens(model.eval(), [1], 30, temperature=0)
    assert text == generate_tokens(model.train(), [1], 30, temperature=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_raise_an_error(value: float, temperature: float) -> None:
    model = random_model("gpt")
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.token_embedding.weight[3] = value  # the embedding of one of the seven tokens
    with pytest.raises(Stopped, match="the model's logits are not finite"):
        generate_tokens(model, [1], 1, temperature=temperature)
