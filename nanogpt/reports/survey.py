"""What a text is like, and what is to be beaten on it: the entropy of its n-grams."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..text.corpora import SPLITS, Corpus, cut_at
from ..text.encoding import CHUNK, cut
from ..text.readers import Progress, quiet
from ..text.tokenizers import AT_SPACES

Codes = NDArray[np.int64]

BITS = 21
"""Of a code point, so that three of them are one number of 64 bits."""
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What str.splitlines() ends a line at."""


@dataclass(frozen=True)
class NGramEntropy:
    """How well a character can be guessed from the n - 1 before it, by counting."""

    n: int
    entropy: float
    """Of a character, given those before it, in nats: of the counts of all of the text."""
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
    ngrams: list[NGramEntropy]


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of a text comes."""

    codes: Codes
    """Each n-gram as one number, its code points in 21 bits each; in order."""
    times: Codes


def survey_text(corpus: Corpus, progress: Progress = quiet) -> Survey:
    """What a text of some characters is like. It is read in pieces, some times over."""

    done = Counter[str]()

    def heard(pieces: Iterable[str], what: str) -> Iterator[str]:
        for piece in pieces:
            yield piece
            done[what] += len(piece.encode())
            progress(what, done[what], corpus.facts.bytes)

    words, breaks, last = Counter[str](), 0, ""
    for chunk in cut(heard(corpus.pieces(), "counting words"), AT_SPACES, CHUNK):
        words.update(re.findall(r"\w+(?:['’]\w+)*", chunk.lower()))
        breaks, last = breaks + len(f"-{chunk}-".splitlines()) - 1, chunk[-1]
    ngrams, alphabet = [], ""
    for n in (1, 2, 3):
        train, val = (
            count(cut(heard(corpus.part(name), f"counting {n}-grams"), "", CHUNK), n)
            for name in SPLITS
        )
        both = merged([train, val])
        alphabet = alphabet or "".join(map(chr, both.codes))
        if corpus.facts.characters >= 30:
            ngrams.append(NGramEntropy(n, entropy(both), counted_loss(train, val, len(alphabet))))
    at = cut_at(corpus.facts.characters)
    return Survey(
        bytes=corpus.facts.bytes,
        characters=corpus.facts.characters,
        alphabet=alphabet,
        lines=breaks + (last not in LINE_BREAKS),
        words=words.total(),
        frequent=words.most_common(10),
        train=at,
        val=corpus.facts.characters - at,
        ngrams=ngrams,
    )


def count(pieces: Iterable[str], n: int) -> Counts:
    """The n-grams of a text in pieces; n is at most 3."""
    parts, before = [merged([])], ""
    for piece in pieces:
        text = before + piece
        before = text[len(text) - n + 1 :]
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
        codes = np.zeros(max(0, len(points) - n + 1), dtype=np.int64)
        for i in range(n):
            codes = codes << BITS | points[i : i + len(codes)]
        parts.append(Counts(*np.unique(codes, return_counts=True)))
        if sum(len(part.codes) for part in parts[1:]) > len(parts[0].codes):
            parts = [merged(parts)]  # each time there are twice as many
    return merged(parts)


def merged(parts: Sequence[Counts]) -> Counts:
    """The counts of several texts together."""
    every, times = (
        np.concatenate([np.empty(0, np.int64), *arrays])
        for arrays in ([part.codes for part in parts], [part.times for part in parts])
    )
    order = np.argsort(every, kind="stable")
    codes, starts = np.unique(every[order], return_index=True)
    return Counts(codes, np.add.reduceat(times[order], starts) if len(codes) else times)


def prefixes(ngrams: Counts) -> Counts:
    """How often the first n - 1 characters of n-grams come, of those that one follows."""
    codes, starts = np.unique(ngrams.codes >> BITS, return_index=True)
    return Counts(codes, np.add.reduceat(ngrams.times, starts) if len(codes) else ngrams.times)


def entropy(ngrams: Counts) -> float:
    """H(x_n | x_1 … x_{n-1}) in nats: that of all n together less that of all but the last."""

    def joint(counts: Counts) -> float:
        p = counts.times / counts.times.sum()
        return float(-(p * np.log(p)).sum())

    return joint(ngrams) - joint(prefixes(ngrams))


def counted_loss(train: Counts, val: Counts, V: int) -> float:
    """The mean of -ln((count(x_1 … x_n) + 1) / (count(x_1 … x_{n-1}) + V)), of val by train."""

    def times(asked: Codes, among: Counts) -> Codes:
        place = np.searchsorted(among.codes, asked).clip(max=len(among.codes) - 1)
        return np.where(among.codes[place] == asked, among.times[place], 0)

    both = times(val.codes, train)
    before = times(val.codes >> BITS, prefixes(train))
    losses = np.log((before + V) / (both + 1))
    return float((losses * val.times).sum() / val.times.sum())


def nats_to_bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
