"""Statistics of a text: its size, its words, and the entropy and loss of its n-grams."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..text.bpe import SPACE_BOUNDARY
from ..text.corpora import SPLITS, Corpus, count_training_characters
from ..text.encoding import CHUNK_SIZE, rechunk
from ..text.kneser_ney import MAX_ORDER, KneserNey, choose_order
from ..text.ngrams import NGramCounts
from ..text.readers import Progress, no_progress

CODE_POINTS = 1 << 21
"""A power of two above the number of Unicode code points. A 3-gram of code points, with 21 bits
each, fits into an int64."""
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""The characters that end a line for str.splitlines()."""
MIN_CHARACTERS = 30
"""Shortest text for which n-gram losses are computed: its validation split has one 3-gram."""
MAX_KNESER_NEY_CHARACTERS = 5_000_000
"""Longest text for which the Kneser-Ney loss is computed: all of the text must fit in memory."""


@dataclass(frozen=True)
class NGramEntropy:
    """How well a character can be predicted from the n - 1 characters before it."""

    n: int
    entropy: float
    """Entropy of a character given the n - 1 characters before it, in nats, over the whole text."""
    val_loss: float
    """Nats per character on the last 10% of the text. The probabilities are from counts of the
    first 90%, with add-one smoothing."""


@dataclass(frozen=True)
class Survey:
    """Statistics of a text."""

    bytes: int
    """Size of the text in UTF-8, in bytes."""
    characters: int
    alphabet: str
    """All distinct characters, sorted by code point."""
    lines: int
    words: int
    frequent: list[tuple[str, int]]
    """The ten most frequent words, each with its count."""
    train: int
    """Characters of the training split."""
    val: int
    """Characters of the validation split."""
    ngrams: list[NGramEntropy]
    """For n = 1, 2 and 3; empty if the text has fewer than MIN_CHARACTERS characters."""
    kneser_ney_loss: float | None
    """Like NGramEntropy.val_loss, but for n up to MAX_ORDER and with Kneser-Ney smoothing. None if
    the text is shorter than MIN_CHARACTERS, longer than MAX_KNESER_NEY_CHARACTERS, or has too many
    different characters."""


def survey_text(corpus: Corpus, progress: Progress = no_progress) -> Survey:
    """Compute the statistics of a text, in several passes.

    A text is loaded as a whole only if it has at most MAX_KNESER_NEY_CHARACTERS characters.
    """
    done = Counter[str]()

    def report(chunks: Iterable[str], what: str) -> Iterator[str]:
        for chunk in chunks:
            yield chunk
            done[what] += len(chunk.encode())
            progress(what, done[what], corpus.facts.bytes)

    words, breaks, last = Counter[str](), 0, ""
    for chunk in rechunk(report(corpus.chunks(), "counting words"), SPACE_BOUNDARY, CHUNK_SIZE):
        words.update(re.findall(r"\w+(?:['’]\w+)*", chunk.lower()))
        # splitlines() returns no item after a final line break, so the chunk is between dashes.
        breaks, last = breaks + len(f"-{chunk}-".splitlines()) - 1, chunk[-1]
    ngrams, alphabet = [], ""
    for n in (1, 2, 3):
        train, val = (
            count_characters(
                rechunk(report(corpus.read_split(name), f"counting {n}-grams"), "", CHUNK_SIZE), n
            )
            for name in SPLITS
        )
        both = train + val
        alphabet = alphabet or "".join(map(chr, both.codes))
        if corpus.facts.characters >= MIN_CHARACTERS:
            loss = train.loss(val, vocab_size=len(alphabet))
            ngrams.append(NGramEntropy(n, both.entropy(), loss))
    n_train = count_training_characters(corpus.facts.characters)
    return Survey(
        bytes=corpus.facts.bytes,
        characters=corpus.facts.characters,
        alphabet=alphabet,
        lines=breaks + (last not in LINE_BREAKS),
        words=words.total(),
        frequent=words.most_common(10),
        train=n_train,
        val=corpus.facts.characters - n_train,
        ngrams=ngrams,
        kneser_ney_loss=compute_kneser_ney_loss(corpus, alphabet),
    )


def compute_kneser_ney_loss(corpus: Corpus, alphabet: str) -> float | None:
    """Return the validation loss of smoothed n-grams, or None (see Survey.kneser_ney_loss)."""
    is_readable = MIN_CHARACTERS <= corpus.facts.characters <= MAX_KNESER_NEY_CHARACTERS
    if not is_readable or choose_order(len(alphabet)) < MAX_ORDER:
        return None
    points = get_code_points(alphabet)
    train, val = (
        np.searchsorted(points, get_code_points("".join(corpus.read_split(name))))
        for name in SPLITS
    )
    return KneserNey(train, MAX_ORDER, len(alphabet)).loss(val)


def count_characters(chunks: Iterable[str], n: int) -> NGramCounts:
    """Count the character n-grams of a text that is given in chunks; n is at most 3."""
    return NGramCounts(map(get_code_points, chunks), n, CODE_POINTS)


def get_code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points (N,) of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def nats_to_bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)
