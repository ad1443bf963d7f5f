"""What a text is like, and what is to be beaten on it: the entropy of its n-grams."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .corpora import cut

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class NGrams:
    """How well a character can be guessed from the n - 1 before it, by counting."""

    n: int
    entropy: float
    """Of a character, given those before it, in nats: of the text's own counts, over all of it."""
    val_loss: float
    """Nats a character on the last 10%, by counts of the first 90% and one more of everything."""


@dataclass(frozen=True)
class Survey:
    """What a text is like."""

    bytes: int
    """In UTF-8."""
    characters: int
    alphabet: str
    """Every character, in the order of the code points."""
    lines: int
    words: int
    frequent: list[tuple[str, int]]
    """The ten words that come most, and how often."""
    train: int
    """Characters to train on."""
    val: int
    """Characters to measure with."""
    ngrams: list[NGrams]


def survey(text: str) -> Survey:
    """What a text of some characters is like."""
    alphabet = "".join(sorted(set(text)))
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    known = np.frombuffer(alphabet.encode("utf-32-le"), dtype=np.uint32)
    codes = np.searchsorted(known, points).astype(np.int64)
    words = Counter(re.findall(r"\w+(?:['’]\w+)*", text.lower()))
    parts = cut(text)
    at, V = len(parts["train"]), len(alphabet)
    return Survey(
        bytes=len(text.encode()),
        characters=len(text),
        alphabet=alphabet,
        lines=len(text.splitlines()),
        words=words.total(),
        frequent=words.most_common(10),
        train=at,
        val=len(parts["val"]),
        ngrams=[
            NGrams(n, entropy(codes, V, n), counted_loss(codes[:at], codes[at:], V, n))
            for n in (1, 2, 3)
            if len(text) >= 30
        ],
    )


def windows(codes: Codes, V: int, n: int) -> Codes:
    """Each n characters that follow each other (N,) as one number (N - n + 1,)."""
    found = np.zeros(len(codes) - n + 1, dtype=np.int64)
    for i in range(n):
        found = found * V + codes[i : len(codes) - n + 1 + i]
    return found


def entropy(codes: Codes, V: int, n: int) -> float:
    """H(x_n | x_1 … x_{n-1}) in nats: that of all n together less that of all but the last."""

    def joint(m: int, among: Codes) -> float:
        counts = np.unique(windows(among, V, m), return_counts=True)[1]
        p = counts / counts.sum()
        return float(-(p * np.log(p)).sum())

    return joint(n, codes) - (joint(n - 1, codes[:-1]) if n > 1 else 0.0)


def counted_loss(train: Codes, val: Codes, V: int, n: int) -> float:
    """The mean of -ln((count(x_1 … x_n) + 1) / (count(x_1 … x_{n-1}) + V)), of val by train."""

    def counts_of(asked: Codes, among: Codes) -> NDArray[np.int64]:
        known, counts = np.unique(among, return_counts=True)
        place = np.searchsorted(known, asked).clip(max=len(known) - 1)
        return np.where(known[place] == asked, counts[place], 0)

    asked = windows(val, V, n)
    both = counts_of(asked, windows(train, V, n))
    before = counts_of(asked // V, windows(train, V, n) // V)
    return float(np.log((before + V) / (both + 1)).mean())


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
