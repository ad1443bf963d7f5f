"""A model with a cache says what it says without one, however the text is fed to it."""

import pytest
import torch

from nanogpt.models import build
from nanogpt.models.bigram import BigramConfig
from nanogpt.models.cache import Cache
from nanogpt.models.gpt import GPTConfig
from nanogpt.models.modern import ModernConfig

CONFIGS = [
    GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=7),
    ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=7),
    BigramConfig(vocab_size=7, block_size=12),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_piece_by_piece_is_all_at_once(config: GPTConfig | ModernConfig | BigramConfig) -> None:
    """Rows of two lengths, filled up with other tokens, then one token at a time."""
    model = build(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    tokens = torch.randint(7, (2, 12))
    expected, counts = model(tokens), torch.tensor([5, 3])
    cache = Cache(2, 12, torch.device("cpu"))
    cache.input_lengths.copy_(counts)
    start = tokens[:, :5].clone()
    start[1, 3:] = 6  # no part of the text
    logits = model(start, cache)
    cache.advance()
    cache.input_lengths.fill_(1)
    rows = torch.arange(2)
    for _ in range(7):
        torch.testing.assert_close(logits[:, 0], expected[rows, cache.lengths - 1])
        logits = model(tokens[rows, cache.lengths][:, None], cache)
        cache.advance()
    torch.testing.assert_close(logits[:, 0], expected[rows, cache.lengths - 1])


def test_nothing_but_what_came_is_seen() -> None:
    cache = Cache(2, 20, torch.device("cpu"))
    assert cache.set_positions(2, torch.float32).tolist() == [[0, 1], [0, 1]]
    assert cache.mask is None
    cache.lengths.copy_(torch.tensor([3, 0]))
    assert cache.set_positions(1, torch.float32).tolist() == [[3], [0]]
    assert cache.mask is not None
    assert cache.mask.shape == (2, 1, 1, 32)
    assert (cache.mask == 0).sum(-1).flatten().tolist() == [4, 1]
    assert set(cache.mask.unique().tolist()) == {0, -torch.inf}
