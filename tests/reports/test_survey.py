"""The survey of a text, compared with entropies computed by hand and with known values."""

import math
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from nanogpt.reports.survey import CODE_POINTS, count_characters, nats_to_bits, survey_text
from nanogpt.text import corpora
from nanogpt.text.corpora import make_corpus
from nanogpt.text.ngrams import NGramCounts


def count_in_chunks(text: str, n: int) -> NGramCounts:
    """Count the n-grams of a text that is given in five chunks of random lengths."""
    cuts = sorted(random.Random(0).choices(range(len(text) + 1), k=4))
    return count_characters((text[a:b] for a, b in pairwise([0, *cuts, len(text)])), n)


def test_entropy_of_periodic_texts() -> None:
    """In "abab…", one character determines the next; in "aabbaabb…", two are needed."""
    assert count_in_chunks("ab" * 50, 1).entropy() == pytest.approx(math.log(2))
    assert count_in_chunks("ab" * 50, 2).entropy() == pytest.approx(0, abs=1e-3)
    assert count_in_chunks("aabb" * 500, 2).entropy() == pytest.approx(math.log(2), abs=1e-2)
    assert count_in_chunks("aabb" * 500, 3).entropy() == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_characters_of_any_unicode_plane_are_counted_across_chunks(text: str, n: int) -> None:
    text = "终é👩" + text[:500]
    expected = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    counts = count_in_chunks(text, n)
    spelled = [
        "".join(chr(code // CODE_POINTS**i % CODE_POINTS) for i in reversed(range(n)))
        for code in counts.codes.tolist()
    ]
    assert dict(zip(spelled, counts.counts.tolist(), strict=True)) == expected
    assert spelled == sorted(spelled)


def test_survey_of_tiny_shakespeare() -> None:
    survey = survey_text(corpora.load_corpus("tinyshakespeare"))
    assert (survey.bytes, survey.characters, len(survey.alphabet)) == (1_115_394, 1_115_394, 65)
    assert (survey.train, survey.val, survey.lines) == (1_003_854, 111_540, 40_000)
    assert survey.frequent[0] == ("the", 6287)
    losses = [row.val_loss for row in survey.ngrams]
    assert losses == pytest.approx([3.3473, 2.4819, 2.0684], abs=1e-4)
    assert all(row.entropy < row.val_loss for row in survey.ngrams)


def test_survey_of_several_scripts_and_of_a_short_text() -> None:
    survey = survey_text(make_corpus("问é\r\n" * 20 + "👩"))
    assert (survey.characters, survey.bytes, survey.lines) == (81, 20 * 7 + 4, 21)
    assert survey.alphabet == "\n\ré问👩"
    assert survey_text(make_corpus("ab")).ngrams == []


def test_nats_to_bits() -> None:
    assert nats_to_bits(math.log(2)) == 1


def test_survey_does_not_import_torch() -> None:
    code = "import sys, nanogpt.reports.survey; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_the_kneser_ney_loss_needs_a_text_of_suitable_size(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_text(corpora.load_corpus("tinyshakespeare"))
    assert survey.kneser_ney_loss == pytest.approx(1.5165, abs=5e-5)
    assert survey_text(make_corpus("ab" * 14)).kneser_ney_loss is None
    assert survey_text(make_corpus("".join(map(chr, range(33, 633))))).kneser_ney_loss is None
    monkeypatch.setattr("nanogpt.reports.survey.MAX_KNESER_NEY_CHARACTERS", 99)
    assert survey_text(make_corpus("ab" * 50)).kneser_ney_loss is None
