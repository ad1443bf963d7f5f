"""KneserNey gives the same probabilities as its equations, computed with dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.text import corpora
from nanogpt.text.kneser_ney import KneserNey
from nanogpt.text.tokenizers import CharTokenizer

Gram = tuple[int, ...]
V = 4


def discount(counts: Counter[Gram], count: int) -> float:
    """Return the discount of a count: equation 17 of Chen & Goodman 1999."""
    n1, n2, n3, n4 = ([*counts.values()].count(c) for c in (1, 2, 3, 4))
    if count == 0:
        return 0
    if not n1 * n2 * n3 * n4:
        return min(count, 3) / 2
    Y = n1 / (n1 + 2 * n2)
    ratio = {1: n2 / n1, 2: n3 / n2}.get(count, n4 / n3)
    return min(max(0, min(count, 3) - (min(count, 3) + 1) * Y * ratio), min(count, 3))


def count_orders(ids: list[int], n: int) -> list[Counter[Gram]]:
    """Count the n-grams; for each k < n, count the different tokens before each k-gram."""
    orders = [Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))]
    for _ in range(n - 1):
        orders.insert(0, Counter(gram[1:] for gram in orders[0]))
    return orders


def predict(orders: list[Counter[Gram]], context: Gram, x: int) -> float:
    """Return p(x | context); the context must be shorter than the longest n-gram."""
    shorter = predict(orders, context[1:], x) if context else 1 / V
    counts = orders[len(context)]
    followers = {gram: c for gram, c in counts.items() if gram[:-1] == context}
    if not followers:
        return shorter
    reserved = sum(discount(counts, c) for c in followers.values())
    count = counts[(*context, x)]
    return (count - discount(counts, count) + reserved * shorter) / sum(followers.values())


texts = st.lists(st.integers(0, V - 1), min_size=1, max_size=200)


@given(texts, texts, st.integers(1, 4))
def test_probabilities_equal_the_equations(train: list[int], val: list[int], n: int) -> None:
    orders = count_orders(train, n)
    expected = [predict(orders, tuple(val[max(0, i - n + 1) : i]), x) for i, x in enumerate(val)]
    model = KneserNey(np.array(train), n, V)
    assert model.probabilities(np.array(val)).tolist() == pytest.approx(expected)
    assert model.loss(np.array(val)) == pytest.approx(-np.log(expected).mean())


@given(texts, st.lists(st.integers(0, V - 1), max_size=6), st.integers(1, 4))
def test_next_probabilities_sum_to_one(train: list[int], context: list[int], n: int) -> None:
    model = KneserNey(np.array(train), n, V)
    p = model.next_probabilities(context)
    assert math.isclose(p.sum(), 1)
    expected = [model.probabilities(np.array([*context, x]))[-1] for x in range(V)]
    assert p.tolist() == pytest.approx(expected)


def test_loss_on_tiny_shakespeare() -> None:
    """Two independent programs in plain Python computed the expected losses."""
    corpus = corpora.load_corpus("tinyshakespeare")
    tokenizer = CharTokenizer(corpus.text())
    train, val = ("".join(corpus.read_split(name)) for name in ("train", "val"))
    losses = [
        KneserNey(tokenizer.encode_array(train), n, tokenizer.vocab_size).loss(
            tokenizer.encode_array(val)
        )
        for n in (5, 6, 7, 8)
    ]
    assert losses == pytest.approx([1.5612, 1.5226, 1.5165, 1.5192], abs=5e-5)
