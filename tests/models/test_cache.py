"""models/cache.py: a model computes the same logits with a cache as without a cache."""

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
    ModernConfig(
        n_layer=3, n_head=2, n_embd=16, block_size=12, vocab_size=7, activation="swiglu", skips=True
    ),
    ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=7, look_back=False),
    BigramConfig(vocab_size=7, block_size=12),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_cached_logits_equal_those_of_the_whole_text(
    config: GPTConfig | ModernConfig | BigramConfig,
) -> None:
    """Prefill two texts of different lengths with padding, then decode one token at a time."""
    model = build(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    tokens = torch.randint(7, (2, 12))
    expected = model(tokens)
    cache = Cache(2, 12, torch.device("cpu"))
    cache.begin_prefill([5, 3])
    prompts = tokens[:, :5].clone()
    prompts[1, 3:] = 6  # padding
    logits = model(prompts, cache)
    cache.end_prefill()
    rows = torch.arange(2)
    for _ in range(7):
        torch.testing.assert_close(logits[:, 0], expected[rows, cache.lengths - 1])
        logits = model(tokens[rows, cache.lengths][:, None], cache)
        cache.advance()
    torch.testing.assert_close(logits[:, 0], expected[rows, cache.lengths - 1])


def test_mask_hides_all_later_slots() -> None:
    cache = Cache(2, 20, torch.device("cpu"))
    assert cache.set_positions(2, torch.float32).tolist() == [[0, 1], [0, 1]]
    assert cache.mask is None
    cache.lengths.copy_(torch.tensor([3, 0]))
    assert cache.set_positions(1, torch.float32).tolist() == [[3], [0]]
    assert cache.mask is not None
    assert cache.mask.shape == (2, 1, 1, 32)
    assert (cache.mask == 0).sum(-1).flatten().tolist() == [4, 1]
    assert set(cache.mask.unique().tolist()) == {0, -torch.inf}
