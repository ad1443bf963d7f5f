"""Counting, against the bigram's table, the survey of a text and a plain loop."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from nanogpt.models.bigram import counted_loss
from nanogpt.reports.survey import survey_text
from nanogpt.studies.ngrams import NGrams
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer


def test_losses_are_those_of_the_bigram_and_the_survey(text: str) -> None:
    corpus = make_corpus(text)
    tokenizer = CharTokenizer(text)
    train, val = (
        torch.tensor(tokenizer.encode("".join(corpus.part(name)))) for name in ("train", "val")
    )
    losses = [NGrams(train, n, tokenizer.vocab_size).loss(val) for n in (1, 2, 3)]
    assert losses[1] == pytest.approx(counted_loss(train, val, tokenizer.vocab_size))
    # The survey divides by how often a context came with something after it, and so does this.
    assert losses == pytest.approx([each.val_loss for each in survey_text(corpus).ngrams])


def test_it_is_a_plain_loop() -> None:
    train, val = torch.randint(4, (300,)), torch.randint(4, (50,))
    t, v = train.tolist(), val.tolist()
    triples = Counter(zip(t, t[1:], t[2:], strict=False))
    pairs = Counter(pairwise(t[:-1]))
    total = 0.0
    for i in range(2, len(v)):
        times = triples[v[i - 2], v[i - 1], v[i]] + 0.5
        total -= math.log(times / (pairs[v[i - 2], v[i - 1]] + 0.5 * 4))
    found = NGrams(train, 3, 4, smoothing=0.5)
    assert found.loss(val) == pytest.approx(total / (len(v) - 2))
    assert found.parameters == len(triples)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_writes_as_often_as_it_counted(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, True, generator=generator)
    model = NGrams(train, n, 3, smoothing=0.001)
    written = torch.tensor(model.sample(0, 1500, generator))
    assert len(written) == 1500
    shares = (torch.bincount(each, minlength=3) / len(each) for each in (written, train))
    torch.testing.assert_close(*shares, atol=0.06, rtol=0)


def test_what_always_follows_is_written() -> None:
    train = torch.tensor([0, 1, 2] * 50)
    generator = torch.Generator().manual_seed(0)
    written = NGrams(train, 2, 3, smoothing=1e-9).sample(0, 9, generator)
    assert written == [1, 2, 0, 1, 2, 0, 1, 2, 0]
