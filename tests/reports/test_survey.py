"""Entropies by hand, and by torch's counts."""

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from nanogpt.models.bigram import counted_loss as torch_counted_loss
from nanogpt.reports.survey import (
    BITS,
    Counts,
    count,
    counted_loss,
    entropy,
    nats_to_bits,
    survey_text,
)
from nanogpt.text import corpora
from nanogpt.text.corpora import make_corpus


def of(text: str, n: int) -> Counts:
    """The n-grams of a text, counted in pieces."""
    draw = random.Random(0)
    cuts = sorted(draw.choices(range(len(text) + 1), k=4))
    return count((text[a:b] for a, b in pairwise([0, *cuts, len(text)])), n)


def test_entropies_by_hand() -> None:
    """abab…: two letters, each known from the one before. aabb aabb…: known from the two before."""
    assert entropy(of("ab" * 50, 1)) == pytest.approx(math.log(2))
    assert entropy(of("ab" * 50, 2)) == pytest.approx(0, abs=1e-3)
    assert entropy(of("aabb" * 500, 2)) == pytest.approx(math.log(2), abs=1e-2)
    assert entropy(of("aabb" * 500, 3)) == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_grams_are_counted_across_pieces(text: str, n: int) -> None:
    text = "终é👩" + text[:500]
    expected = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    found = of(text, n)
    spelled = [
        "".join(chr(code >> BITS * i & (1 << BITS) - 1) for i in reversed(range(n)))
        for code in found.codes.tolist()
    ]
    assert dict(zip(spelled, found.times.tolist(), strict=True)) == expected
    assert spelled == sorted(spelled)


def test_counting_is_the_bigram_s() -> None:
    codes = np.random.default_rng(0).integers(5, size=400)
    train, val = codes[:360], codes[360:]
    expected = torch_counted_loss(torch.tensor(train), torch.tensor(val), 5)
    text = "".join(map(chr, codes))
    assert counted_loss(of(text[:360], 2), of(text[360:], 2), 5) == pytest.approx(expected)


def test_counting_by_hand() -> None:
    """Train "aab", val "ba", of an alphabet of two: unigrams (2 + 1) / (3 + 2), (1 + 1) / 5."""
    expected = -(math.log(2 / 5) + math.log(3 / 5)) / 2
    assert counted_loss(of("aab", 1), of("ba", 1), 2) == pytest.approx(expected)
    assert counted_loss(of("aab", 2), of("ab", 2), 2) == pytest.approx(-math.log(2 / 4))
    loop = -sum(math.log((c + 1) / (b + 3)) for b, c in ((1, 1), (2, 0))) / 2
    assert counted_loss(of("abcbca", 3), of("abcc", 3), 3) == pytest.approx(loop)


def test_tiny_shakespeare() -> None:
    found = survey_text(corpora.load_corpus("tinyshakespeare"))
    assert (found.bytes, found.characters, len(found.alphabet)) == (1_115_394, 1_115_394, 65)
    assert (found.train, found.val, found.lines) == (1_003_854, 111_540, 40_000)
    assert found.frequent[0] == ("the", 6287)
    losses = [each.val_loss for each in found.ngrams]
    assert losses == pytest.approx([3.3473, 2.4819, 2.0684], abs=1e-4)
    assert [e.entropy < e.val_loss for e in found.ngrams] == [True] * 3


def test_any_text() -> None:
    found = survey_text(make_corpus("问é\r\n" * 20 + "👩"))
    assert (found.characters, found.bytes) == (81, 20 * 7 + 4)
    assert found.alphabet == "\n\ré问👩"
    assert survey_text(make_corpus("ab")).ngrams == []
    assert nats_to_bits(math.log(2)) == 1
