"""Modified Kneser-Ney smoothing: a model that combines the counts of k-grams for k from 1 to n."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ngrams import (
    Ids,
    Integers,
    count_codes,
    encode_followers,
    encode_ngrams,
    look_up,
    sum_groups,
)

Floats = NDArray[np.float64]
MAX_ORDER = 7
"""Length of the longest n-grams: for Tiny Shakespeare, longer ones do not lower the loss."""


def choose_order(vocab_size: int) -> int:
    """Return the largest n up to MAX_ORDER for which an n-gram fits into 63 bits."""
    return next(n for n in range(MAX_ORDER, 0, -1) if n == 1 or vocab_size**n <= 1 << 63)


@dataclass(frozen=True)
class _Order:
    """The counts of all k-grams, for one length k."""

    codes: Integers
    """The distinct k-grams, in ascending order (ngrams.py defines the codes)."""
    counts: Integers
    contexts: Integers
    """The distinct contexts (the first k - 1 tokens of the k-grams), in ascending order."""
    totals: Integers
    """The sum of the counts of each context's k-grams."""
    reserved: Floats
    """The sum of the discounts of each context's k-grams."""
    discounts: Floats
    """The discounts of the counts 0, 1, 2, and 3 or more."""

    def interpolate(self, codes: Integers, V: int, shorter: Floats) -> Floats:
        """Return p_k (see KneserNey) of each k-gram in `codes` (N,).

        `shorter` (N,) contains p_{k-1} of the last k - 1 tokens of each k-gram.
        """
        counts = look_up(codes, self.codes, self.counts)
        totals = look_up(codes // V, self.contexts, self.totals)
        reserved = look_up(codes // V, self.contexts, self.reserved)
        discounted = counts - self.discounts[counts.clip(max=3)]
        p = (discounted + reserved * shorter) / totals.clip(min=1)
        return np.where(totals > 0, p, shorter)


class KneserNey:
    """Predicts a token from the n - 1 tokens before it (Chen & Goodman 1999, section 3).

    With a context of k - 1 tokens, the probability of a token x is

        p_k(x | context) = (count(context, x) - D) / total + (reserved / total) p_{k-1}(x | shorter)

    The discount D depends on the count; `total` and `reserved` are the sums, over all x, of the
    counts and of the discounts; `shorter` is the context without its first token. If the training
    text does not contain the context, p_k is p_{k-1}. For a vocabulary of V tokens, p_0 is 1 / V.

    For k = n, count() is the number of times that the k-gram occurs. For k < n, count() is the
    number of different tokens that come before the k-gram in the text, because a token that follows
    many different contexts is likely in a new context, too.
    """

    def __init__(self, ids: Ids, n: int, vocab_size: int) -> None:
        """Count the k-grams of ids (N,), for k from 1 to n. Each id is from 0 to vocab_size - 1."""
        assert vocab_size**n <= 1 << 63, "an n-gram must fit into 63 bits"
        self.n, self.vocab_size = n, vocab_size
        self.orders: list[_Order] = []
        distinct, counts = count_codes(encode_ngrams(ids.astype(np.int64), n, vocab_size))
        for k in range(n, 0, -1):
            self.orders.insert(0, _make_order(distinct, counts, vocab_size))
            if k > 1:
                # Each distinct k-gram adds 1 to the count of its last k - 1 tokens.
                distinct, counts = count_codes(distinct % vocab_size ** (k - 1))

    def probabilities(self, ids: Ids) -> Floats:
        """Return p(token | previous n - 1 tokens) for each token in ids (N,): shape (N,).

        The first n - 1 tokens have shorter contexts.
        """
        V, tokens = self.vocab_size, ids.astype(np.int64)
        p = np.full(len(tokens), 1 / V)
        for k, order in enumerate(self.orders, start=1):
            p[k - 1 :] = order.interpolate(encode_ngrams(tokens, k, V), V, p[k - 1 :])
        return p

    def next_probabilities(self, context: Sequence[int]) -> Floats:
        """Return the probability of each possible token after `context`: shape (V,)."""
        V = self.vocab_size
        p = np.full(V, 1 / V)
        for k, order in enumerate(self.orders[: len(context) + 1], start=1):
            p = order.interpolate(encode_followers(context, k, V), V, p)
        return p

    def __len__(self) -> int:
        """Return the number of distinct k-grams of all lengths."""
        return sum(len(order.codes) for order in self.orders)

    def loss(self, ids: Ids) -> float:
        """Return the mean of -ln p of the tokens in ids (N,), in nats per token."""
        return float(-np.log(self.probabilities(ids)).mean())


def _make_order(codes: Integers, counts: Integers, V: int) -> _Order:
    """For each context, sum the counts and the discounts of its k-grams."""
    discounts = _estimate_discounts(counts)
    contexts, totals = sum_groups(codes // V, counts)
    _, reserved = sum_groups(codes // V, discounts[counts.clip(max=3)])
    return _Order(codes, counts, contexts, totals, reserved, discounts)


def _estimate_discounts(counts: Integers) -> Floats:
    """Return the discounts of the counts 0, 1, 2, and 3 or more (Chen & Goodman 1999, eq. 17).

    The discounts are computed from n1, n2, n3 and n4; for example, n2 is the number of k-grams with
    the count 2. If one of these numbers is 0, as in a very short text, each discount is half of its
    count.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0, 0.5, 1, 1.5])
    Y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3])
    return discounts.clip(0, [0, 1, 2, 3])
