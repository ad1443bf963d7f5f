"""nanogpt/models/__init__.py: flops_per_token(), compared with torch and with a formula."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.evaluate import cross_entropy
from nanogpt.models import (
    BigramConfig,
    GPTConfig,
    ModelConfig,
    ModernConfig,
    build,
    flops_per_token,
)

SHAPE = GPTConfig(n_layer=3, n_head=4, n_embd=128, block_size=96, vocab_size=65)
MODERN = ModernConfig(n_layer=2, n_head=2, n_embd=64, block_size=128, vocab_size=200)


@pytest.mark.parametrize(
    "config",
    [SHAPE, replace(SHAPE, vocab_size=4000), replace(SHAPE, block_size=256), MODERN],
)
def test_flops_per_token_agrees_with_the_count_of_torch(config: ModelConfig) -> None:
    """The counts differ slightly: torch does not count the additions of biases, or the norms."""
    model = build(config)
    inputs, targets = torch.randint(config.vocab_size, (2, 2, config.block_size)).unbind()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cross_entropy(model(inputs), targets).backward()
    counted = counter.get_total_flops() / inputs.numel()
    assert flops_per_token(model) == pytest.approx(counted, rel=0.01)


def test_a_bigram_has_no_matrix_products() -> None:
    assert flops_per_token(build(BigramConfig())) == 0


def test_flops_per_token_follow_from_the_published_parameter_count_of_gpt2() -> None:
    """GPT-2 has 124.4M parameters; without its position embedding, it has N = 123.7M."""
    config = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    with torch.device("meta"):
        found = flops_per_token(build(config))
    assert found == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
