"""Entropies by hand, and by torch's counts."""

import math

import numpy as np
import pytest
import torch

from nanogpt import corpora
from nanogpt.models.bigram import counted_loss as torch_counted_loss
from nanogpt.survey import bits, counted_loss, entropy, survey


def test_entropies_by_hand() -> None:
    """abab…: two letters, each known from the one before. aabb aabb…: known from the two before."""
    ab = np.array([0, 1] * 50)
    assert entropy(ab, 2, 1) == pytest.approx(math.log(2))
    assert entropy(ab, 2, 2) == pytest.approx(0, abs=1e-3)
    aabb = np.array([0, 0, 1, 1] * 500)
    assert entropy(aabb, 2, 2) == pytest.approx(math.log(2), abs=1e-2)
    assert entropy(aabb, 2, 3) == pytest.approx(0, abs=1e-2)


def test_counting_is_the_bigram_s() -> None:
    codes = np.random.default_rng(0).integers(5, size=400)
    train, val = codes[:360], codes[360:]
    expected = torch_counted_loss(torch.tensor(train), torch.tensor(val), 5)
    assert counted_loss(train, val, 5, 2) == pytest.approx(expected)


def test_counting_by_hand() -> None:
    """Train "aab", val "ba", of an alphabet of two: unigrams (2 + 1) / (3 + 2), (1 + 1) / 5."""
    train, val = np.array([0, 0, 1]), np.array([1, 0])
    expected = -(math.log(2 / 5) + math.log(3 / 5)) / 2
    assert counted_loss(train, val, 2, 1) == pytest.approx(expected)
    assert counted_loss(train, np.array([0, 1]), 2, 2) == pytest.approx(-math.log(2 / 4))
    loop = -sum(math.log((c + 1) / (b + 3)) for b, c in ((1, 1), (2, 0))) / 2
    trigrams = counted_loss(np.array([0, 1, 2, 1, 2, 0]), np.array([0, 1, 2, 2]), 3, 3)
    assert trigrams == pytest.approx(loop)


def test_tiny_shakespeare() -> None:
    found = survey(corpora.load("tinyshakespeare"))
    assert (found.bytes, found.characters, len(found.alphabet)) == (1_115_394, 1_115_394, 65)
    assert (found.train, found.val, found.lines) == (1_003_854, 111_540, 40_000)
    assert found.frequent[0] == ("the", 6287)
    losses = [each.val_loss for each in found.ngrams]
    assert losses == pytest.approx([3.3473, 2.4819, 2.0684], abs=1e-4)
    assert [e.entropy < e.val_loss for e in found.ngrams] == [True] * 3


def test_any_text() -> None:
    found = survey("问é\r\n" * 20 + "👩")
    assert (found.characters, found.bytes) == (81, 20 * 7 + 4)
    assert found.alphabet == "\n\ré问👩"
    assert survey("ab").ngrams == []
    assert bits(math.log(2)) == 1
