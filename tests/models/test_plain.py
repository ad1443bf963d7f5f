"""models/plain.py compared with explicit formulas and with the model GPT."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from nanogpt.generate import Sampling, generate
from nanogpt.models import GPT, GPTConfig, Plain, PlainConfig, build
from nanogpt.models.gpt import causal_attention

SHAPE = PlainConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=11)
TOKENS = torch.arange(32).remainder(11).view(2, 16)


def compute_logits(model: Plain, tokens: Tensor) -> Tensor:
    """Compute the logits of a model from its weights with explicit formulas."""
    config, w = model.config, dict(model.named_parameters())
    assert isinstance(config, PlainConfig)
    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][: tokens.shape[1]]
    for i in range(config.n_layer):

        def linear(name: str, x: Tensor, i: int = i) -> Tensor:
            return x @ w[f"blocks.{i}.{name}.weight"].T + w[f"blocks.{i}.{name}.bias"]

        heads = linear("attention.qkv", x).split(16, dim=-1)  # q, k and v have two heads each
        mixed = [causal_attention(*heads[h::2])[0] for h in range(2)]
        a = linear("attention.projection", torch.cat(mixed, dim=-1))
        x = x + a if config.residual else a
        if config.feed_forward:
            h = linear("feed_forward.0", x)
            h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
            f = linear("feed_forward.2", h)
            x = x + f if config.residual else f
    return x @ w["token_embedding.weight"].T


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("feed_forward", [False, True])
def test_logits_equal_the_formulas(feed_forward: bool, residual: bool) -> None:
    model = build(replace(SHAPE, feed_forward=feed_forward, residual=residual))
    assert isinstance(model, Plain)
    torch.testing.assert_close(model(TOKENS), compute_logits(model, TOKENS))
    assert any("feed_forward" in name for name, _ in model.named_parameters()) == feed_forward
    assert not any("norm" in name for name, _ in model.named_parameters())


def test_logits_equal_those_of_a_gpt_without_norms() -> None:
    plain = build(replace(SHAPE, feed_forward=True, residual=True))
    shape = {k: v for k, v in asdict(SHAPE).items() if k not in ("feed_forward", "residual")}
    full = GPT(GPTConfig(**shape))
    full.load_state_dict(plain.state_dict(), strict=False)
    for module in full.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = lambda input: input  # type: ignore[method-assign]
    torch.testing.assert_close(plain(TOKENS), full(TOKENS))


def test_without_residual_connections_the_activations_keep_their_size() -> None:
    config = PlainConfig(n_layer=1, n_head=1, n_embd=256, block_size=1, feed_forward=True)
    block = build(config).get_submodule("blocks.0")
    x = torch.randn(500, 1, 256)
    # The standard deviation is less than 1, because GELU reduces the variance.
    assert block(x).std().item() == pytest.approx(math.sqrt(0.35), rel=0.3)


def test_generation_with_a_cache_equals_generation_without() -> None:
    model = build(replace(SHAPE, feed_forward=True)).eval()
    steps = generate(model, [[1, 2, 3]], 8, Sampling(temperature=0.0))
    generated = [step.tokens[0] for step in steps]
    text = [1, 2, 3]
    for _ in range(8):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    assert generated == text[3:]


def test_attention_weights_of_each_position_sum_to_1() -> None:
    model = build(replace(SHAPE, feed_forward=True)).eval()
    assert isinstance(model, Plain)
    weights = model.attention_weights(TOKENS)
    assert weights.shape == (2, 2, 2, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 16))
