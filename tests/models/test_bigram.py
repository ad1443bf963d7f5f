"""models/bigram.py: counts equal those of a plain loop; training converges to the counted table."""

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from nanogpt.models import Bigram, BigramConfig


def test_counted_probabilities_equal_those_of_a_plain_loop() -> None:
    tokens = torch.randint(5, (200,))
    model = Bigram.counted(tokens, BigramConfig(5), smoothing=0.5)
    pairs = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    firsts = Counter(tokens[:-1].tolist())
    probabilities = model(torch.arange(5)[None]).softmax(-1)[0]
    for i in range(5):
        for j in range(5):
            expected = (pairs[i, j] + 0.5) / (firsts[i] + 0.5 * 5)
            assert probabilities[i, j].item() == pytest.approx(expected, rel=1e-5)


def test_smoothing_gives_unseen_pairs_a_probability() -> None:
    model = Bigram.counted(torch.tensor([0, 1, 0, 1]), BigramConfig(3))
    assert torch.isfinite(model.table.weight).all()
    torch.testing.assert_close(model.table.weight[2].exp(), torch.full((3,), 1 / 3))


def test_initial_loss_is_the_logarithm_of_the_vocabulary_size() -> None:
    logits = Bigram(BigramConfig(7))(torch.tensor([[3]]))
    loss = F.cross_entropy(logits[0], torch.tensor([5]))
    assert loss.item() == pytest.approx(math.log(7))


def test_gradient_descent_converges_to_the_counted_table() -> None:
    generator = torch.Generator().manual_seed(1)
    chain = torch.rand(6, 6, generator=generator) ** 3 + 0.02  # weights of a Markov chain
    tokens = [0]
    for _ in range(5000):
        tokens.append(int(torch.multinomial(chain[tokens[-1]], 1, generator=generator)))
    text = torch.tensor(tokens)
    counted = Bigram.counted(text, BigramConfig(6), smoothing=0.0)

    trained = Bigram(BigramConfig(6))
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    for _ in range(500):
        loss = F.cross_entropy(trained(text[:-1]), text[1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    all_tokens = torch.arange(6)
    torch.testing.assert_close(
        trained(all_tokens).softmax(-1), counted(all_tokens).softmax(-1), atol=1e-3, rtol=0
    )
    lowest = F.cross_entropy(counted(text[:-1]), text[1:])
    assert lowest.item() - 1e-6 <= loss.item() <= lowest.item() + 1e-4


@pytest.mark.parametrize("field", ["vocab_size", "block_size"])
def test_config_refuses_an_impossible_size(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0: it must be at least 1"):
        BigramConfig(**{field: 0})
