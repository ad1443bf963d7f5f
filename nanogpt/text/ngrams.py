"""Counts of n-grams, and the language model that they define."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer[Any]]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)


class NGramCounts:
    """The number of times that each n-gram (n successive tokens) occurs in a sequence of ids.

    The counts define a model that predicts a token x from its context, the n - 1 tokens before it,
    with add-s (Laplace) smoothing over V possible tokens:

        p(x | context) = (count(context, x) + s) / (count(context) + s V)

    A context is counted only if a token follows it. Memory grows with the number of distinct
    n-grams, not with the length of the sequence.
    """

    def __init__(self, ids: Ids | Iterable[Ids], n: int, base: int) -> None:
        """Count the n-grams of ids (N,). Each id is from 0 to base - 1; base**n is at most 2**63.

        A sequence that is larger than memory can be given as an iterable of arrays. N-grams that
        start in one array and end in a later array are counted, too.
        """
        assert base**n <= 1 << 63, "an n-gram must fit into 63 bits"
        self.n, self.base = n, base
        self.codes: Integers = np.empty(0, dtype=np.int64)
        """The distinct n-grams, in ascending order. Each is a number in base `base`; its last
        digit is the last token."""
        self.counts: Integers = np.empty(0, dtype=np.int64)
        """How often each n-gram occurs."""

        new: list[tuple[Integers, Integers]] = []
        tail = np.empty(0, dtype=np.int64)
        for chunk in [ids] if isinstance(ids, np.ndarray) else ids:
            joined = np.concatenate([tail, chunk.astype(np.int64)])
            tail = joined[max(0, len(joined) - n + 1) :]
            new.append(count_codes(encode_ngrams(joined, n, base)))
            # A merge copies all old counts. To save time, merge only when there are more new counts
            # than old counts.
            if sum(len(codes) for codes, _ in new) > len(self.codes):
                self._merge(new)
                new = []
        self._merge(new)

    def _merge(self, parts: Sequence[tuple[Integers, Integers]]) -> None:
        """Add the pairs of arrays in `parts`, (codes, counts), to self.codes and self.counts."""
        codes = np.concatenate([self.codes, *(codes for codes, _ in parts)])
        counts = np.concatenate([self.counts, *(counts for _, counts in parts)])
        order = np.argsort(codes, kind="stable")
        self.codes, self.counts = sum_groups(codes[order], counts[order])

    def __len__(self) -> int:
        """Return the number of distinct n-grams."""
        return len(self.codes)

    def __add__(self, other: "NGramCounts") -> "NGramCounts":
        """Return the combined counts of two separate sequences."""
        assert (self.n, self.base) == (other.n, other.base)
        both = NGramCounts([], self.n, self.base)
        both._merge([(self.codes, self.counts), (other.codes, other.counts)])
        return both

    def _count_contexts(self) -> tuple[Integers, Integers]:
        """Return the distinct contexts in ascending order, and the count of each context."""
        return sum_groups(self.codes // self.base, self.counts)

    def count_followers(self, context: Sequence[int]) -> Integers:
        """Return how often each token follows the last n - 1 tokens of `context`: shape (base,)."""
        return look_up(encode_followers(context, self.n, self.base), self.codes, self.counts)

    def next_probabilities(self, context: Sequence[int], smoothing: float = 1.0) -> Floats:
        """Return the probability of each possible token after `context`: shape (base,)."""
        counts = self.count_followers(context).astype(np.float64) + smoothing
        p: Floats = counts / counts.sum()
        return p

    def entropy(self) -> float:
        """Return the entropy of a token given its context, in nats.

        The result is H(x_1 … x_n) - H(x_1 … x_{n-1}): the entropy of the n-grams minus the entropy
        of the contexts.
        """
        return _entropy(self.counts) - _entropy(self._count_contexts()[1])

    def loss(
        self, held_out: "NGramCounts", smoothing: float = 1.0, vocab_size: int | None = None
    ) -> float:
        """Return the mean of -ln p(x | context) over the n-grams of `held_out`, in nats per token.

        `vocab_size` is V, the number of possible tokens; the default is `base`.
        """
        V = vocab_size or self.base
        counts = look_up(held_out.codes, self.codes, self.counts)
        context_counts = look_up(held_out.codes // self.base, *self._count_contexts())
        losses = np.log((context_counts + smoothing * V) / (counts + smoothing))
        return float((losses * held_out.counts).sum() / held_out.counts.sum())


def encode_ngrams(ids: Integers, n: int, base: int) -> Integers:
    """Encode each n-gram of `ids` (N,) as a number: shape (N - n + 1,), or (0,) if N < n."""
    length = max(0, len(ids) - n + 1)
    codes = np.zeros(length, dtype=np.int64)
    for i in range(n):
        codes = codes * base + ids[i : i + length]
    return codes


def encode_followers(context: Sequence[int], n: int, base: int) -> Integers:
    """Encode the n-grams that start with the last n - 1 tokens of `context`: shape (base,)."""
    code = 0
    for token in context[len(context) - n + 1 :]:
        code = code * base + token
    return code * base + np.arange(base, dtype=np.int64)


def count_codes(codes: Integers) -> tuple[Integers, Integers]:
    """Return the distinct codes in ascending order, and how often each code occurs."""
    return np.unique(codes, return_counts=True)


def sum_groups(codes: Integers, values: NDArray[Number]) -> tuple[Integers, NDArray[Number]]:
    """Return the distinct codes of a sorted array, and the sum of the values of each code."""
    distinct, starts = np.unique(codes, return_index=True)
    return distinct, np.add.reduceat(values, starts) if len(distinct) else values


def look_up(asked: Integers, codes: Integers, values: NDArray[Number]) -> NDArray[Number]:
    """Return the value of each code in `asked`; 0 for a code not in the sorted array `codes`."""
    if not len(codes):
        return np.zeros(len(asked), dtype=values.dtype)
    index = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    return np.where(codes[index] == asked, values[index], 0)


def _entropy(counts: Integers) -> float:
    """Return the entropy, in nats, of the distribution that `counts` describes."""
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())
