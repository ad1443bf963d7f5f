"""N-gram counts, compared with dictionaries and with the table of the bigram model."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nanogpt.models import Bigram, BigramConfig
from nanogpt.text.ngrams import NGramCounts

BASE = 3
IDS = st.lists(st.integers(0, BASE - 1), max_size=40)
N = st.integers(1, 4)


def count_by_hand(ids: list[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))


def decode(counts: NGramCounts) -> dict[tuple[int, ...], int]:
    """Return the count of each n-gram as a dictionary."""
    digits = [counts.base**i for i in reversed(range(counts.n))]
    return {
        tuple(int(code) // digit % counts.base for digit in digits): int(count)
        for code, count in zip(counts.codes, counts.counts, strict=True)
    }


@given(st.lists(IDS, max_size=6), N)
def test_counts_of_chunks_equal_a_dictionary(chunks: list[list[int]], n: int) -> None:
    whole = [token for chunk in chunks for token in chunk]
    expected = count_by_hand(whole, n)
    for ids in (np.array(whole, np.uint16), (np.array(chunk, np.uint16) for chunk in chunks)):
        counts = NGramCounts(ids, n, BASE)
        assert decode(counts) == expected
        assert len(counts) == len(expected)
        assert (np.diff(counts.codes) > 0).all()


@given(IDS, IDS, N)
def test_a_sum_has_the_counts_of_both_texts(one: list[int], other: list[int], n: int) -> None:
    both = NGramCounts(np.array(one), n, BASE) + NGramCounts(np.array(other), n, BASE)
    assert decode(both) == count_by_hand(one, n) + count_by_hand(other, n)


@given(IDS, IDS, N, st.sampled_from([1.0, 0.25]), st.sampled_from([None, 7]))
def test_loss_equals_a_plain_loop(
    train: list[int], val: list[int], n: int, smoothing: float, vocab_size: int | None
) -> None:
    val = [0] * n + val
    ngrams, contexts = count_by_hand(train, n), count_by_hand(train[:-1], n - 1)
    if n == 1:
        contexts[()] = len(train)
    losses = []
    for i in range(len(val) - n + 1):
        context, V = tuple(val[i : i + n - 1]), vocab_size or BASE
        count = ngrams[*context, val[i + n - 1]]
        losses.append(-math.log((count + smoothing) / (contexts[context] + smoothing * V)))
    counts, held_out = (NGramCounts(np.array(ids), n, BASE) for ids in (train, val))
    loss = counts.loss(held_out, smoothing, vocab_size)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-12, abs=1e-12)


@given(IDS, N)
def test_entropy_equals_a_plain_loop(ids: list[int], n: int) -> None:
    ids = [0] * n + ids
    ngrams = count_by_hand(ids, n)
    contexts = Counter[tuple[int, ...]]()
    for ngram, count in ngrams.items():
        contexts[ngram[:-1]] += count
    total = ngrams.total()
    expected = -sum(
        count / total * math.log(count / contexts[ngram[:-1]]) for ngram, count in ngrams.items()
    )
    entropy = NGramCounts(np.array(ids), n, BASE).entropy()
    assert entropy == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(IDS, N, IDS)
def test_followers_are_counted_after_the_end_of_a_context(
    ids: list[int], n: int, context: list[int]
) -> None:
    context = [0] * n + context
    end = tuple(context[len(context) - n + 1 :])
    expected = [count_by_hand(ids, n)[*end, token] for token in range(BASE)]
    followers = NGramCounts(np.array(ids, np.int64), n, BASE).count_followers(context)
    assert followers.tolist() == expected


def test_loss_by_hand() -> None:
    """For the text "aab", add-one smoothing gives p(a) = 3/5, p(b) = 2/5 and p(b | a) = 2/4."""
    aab, ab = np.array([0, 0, 1]), np.array([0, 1])
    unigrams = NGramCounts(aab, 1, 2).loss(NGramCounts(ab, 1, 2))
    assert unigrams == pytest.approx(-(math.log(3 / 5) + math.log(2 / 5)) / 2)
    bigrams = NGramCounts(aab, 2, 2).loss(NGramCounts(ab, 2, 2))
    assert bigrams == pytest.approx(-math.log(2 / 4))


@pytest.mark.parametrize("smoothing", [1.0, 0.25])
def test_bigram_loss_equals_that_of_the_counted_table(smoothing: float) -> None:
    train, val = torch.randint(20, (500,)), torch.randint(23, (300,))  # val has unseen tokens
    table = Bigram.counted(train, BigramConfig(23, 8), smoothing).table.weight
    expected = F.cross_entropy(table[val[:-1]], val[1:]).item()
    counts, held_out = (NGramCounts(ids.numpy(), 2, 23) for ids in (train, val))
    assert counts.loss(held_out, smoothing) == pytest.approx(expected, rel=1e-6)


def test_ids_near_the_largest_base_do_not_overflow() -> None:
    base = 1 << 21
    counts = NGramCounts(np.full(5, base - 1, np.uint32), 3, base)
    assert decode(counts) == {(base - 1,) * 3: 3}
