"""Decoding with the kernels agrees with the plain models.

The tests need a CUDA GPU. With TRITON_INTERPRET=1, they run on a CPU if Triton is installed.
"""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.fast.definitions import DIGESTS, Definition
from nanogpt.fast.generation import CapturedDecoder, import_fuse
from nanogpt.generate import Sampling, generate
from nanogpt.models import (
    BigramConfig,
    GPTConfig,
    Model,
    ModelConfig,
    ModernConfig,
    build,
    gpt,
    modern,
)
from nanogpt.models.cache import Cache
from nanogpt.models.plain import PlainConfig

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE: dict[str, Any] = {"n_layer": 2, "block_size": 64, "vocab_size": 11}
CONFIGS = [
    GPTConfig(**SHAPE, n_head=2, n_embd=48),
    GPTConfig(**SHAPE, n_head=4, n_embd=48, bias=False),
    GPTConfig(**SHAPE, n_head=3, n_embd=15),  # heads of an odd size use no kernels
    ModernConfig(**SHAPE, n_head=2, n_embd=144),
    ModernConfig(**SHAPE, n_head=2, n_embd=48, activation="swiglu", skips=True),
    ModernConfig(**SHAPE, n_head=2, n_embd=48, look_back=False),
    ModernConfig(**SHAPE, n_head=1, n_embd=600),  # more inputs than a kernel reads at a time
    BigramConfig(block_size=64, vocab_size=11),
    PlainConfig(**SHAPE, n_head=2, n_embd=48),
]


def random_model(config: ModelConfig) -> Model:
    """Return a model whose parameters are all random, also the biases and the gains of norms."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / math.sqrt(p.shape[-1]))
    return model.to(DEVICE)


def decode(model: Model, tokens: Tensor, prompt: int, uses_kernels: bool) -> Tensor:
    """Return the logits (B, n, V) of decoding all tokens after the first `prompt` tokens."""
    B, T = tokens.shape
    cache, logits = Cache(B, T, DEVICE), []
    with torch.no_grad(), import_fuse()(model) if uses_kernels else nullcontext():
        cache.begin_prefill([prompt] * B)
        model(tokens[:, :prompt], cache)
        cache.end_prefill()
        for i in range(prompt, T):
            logits.append(model(tokens[:, i : i + 1], cache).float())
            cache.advance()
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("changed", [None, gpt.Block, modern.rotate])
def test_changed_blocks_do_not_use_the_kernels(
    changed: Definition | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changed:
        monkeypatch.setitem(DIGESTS, changed, "the digest of other code")
    pairs: list[tuple[Any, Any]] = [(CONFIGS[0], gpt), (CONFIGS[3], modern)]
    for config, module in pairs:
        model = build(config)
        with import_fuse()(model):
            uses_kernels = "forward" in vars(model.get_submodule("blocks.0"))
        assert uses_kernels == (changed is None or changed.__module__ != module.__name__)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("texts", [1, 3, 20])
@pytest.mark.parametrize("prompt", [1, 30])
def test_the_logits_equal_those_of_the_plain_model(
    config: ModelConfig, texts: int, prompt: int
) -> None:
    model = random_model(config)
    tokens = torch.randint(11, (texts, 40), device=DEVICE)
    expected = decode(model, tokens, prompt, False)
    torch.testing.assert_close(decode(model, tokens, prompt, True), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter has no bfloat16")
@pytest.mark.parametrize("config", CONFIGS[:6])
def test_bfloat16_is_as_exact_as_in_the_plain_model(config: ModelConfig) -> None:
    model = random_model(config)
    tokens = torch.randint(11, (4, 40), device=DEVICE)
    exact = decode(model.double(), tokens, 20, False)
    model = model.to(torch.bfloat16)
    errors = [(decode(model, tokens, 20, fused) - exact).norm() for fused in (False, True)]
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("config", CONFIGS[:4])
def test_texts_of_different_lengths_and_full_contexts_get_the_same_tokens(
    config: ModelConfig,
) -> None:
    model, prompts = random_model(config), [[1, 2, 3], [4], [5] * 60]
    decoder = CapturedDecoder(model, prompts, Sampling(), 1, logprobs=False, compile=True)
    assert [*decoder.run(80)] == [*generate(model, prompts, 80, seed=1)]
