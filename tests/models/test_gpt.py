"""models/gpt.py compared with explicit formulas and with GPT-2 from the `transformers` library."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.models import GPT, GPTConfig
from nanogpt.models.gpt import CausalSelfAttention, causal_attention
from nanogpt.system.devices import autocast

SMALL = GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=11)


def tokens(batch: int = 3, time: int = 16, vocab: int = 11) -> Tensor:
    return torch.randint(vocab, (batch, time))


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Set large random weights, so that no term of the formulas is negligible."""
    for parameter in model.parameters():
        parameter.normal_(std=0.5)


def test_changing_a_token_changes_no_earlier_logit() -> None:
    model = GPT(SMALL).eval()
    scramble(model)
    before = tokens()
    for t in range(16):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % 11
        same = torch.isclose(model(before), model(after), atol=1e-6).all(-1)
        assert same[:, :t].all()
        assert not same[:, t].any()


def test_causal_attention_equals_the_fused_kernel() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    values, weights = causal_attention(q, k, v)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(values, fused, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
    assert (weights.triu(diagonal=1) == 0).all()


def test_attention_layer_equals_the_formula_head_by_head() -> None:
    attention = CausalSelfAttention(SMALL).eval()
    scramble(attention)
    x = torch.randn(2, 9, 32)
    values, _ = causal_attention(*attention.heads(x))
    expected = attention.projection(torch.cat(values.unbind(1), dim=-1))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_scores_are_divided_by_the_root_of_the_head_size() -> None:
    # Only the first of two keys matches the query, so the weights are the softmax of (D / √D, 0).
    D = 16
    q = k = torch.stack([torch.ones(D), torch.zeros(D)])
    _, weights = causal_attention(q.flip(0), k, k)
    expected = math.exp(math.sqrt(D)) / (math.exp(math.sqrt(D)) + 1)
    assert weights[1, 0].item() == pytest.approx(expected, rel=1e-6)


def test_attention_weights_equal_those_of_the_forward_pass() -> None:
    model = GPT(SMALL).eval()
    scramble(model)
    t = tokens()
    weights = model.attention_weights(t)
    assert weights.shape == (2, 3, 4, 16, 16)
    inputs: list[Tensor] = []
    for block in model.blocks:
        attention: Any = block.attention
        attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(t)
    for x, block, of_block in zip(inputs, model.blocks, weights, strict=True):
        attention = block.attention
        torch.testing.assert_close(of_block, causal_attention(*attention.heads(x))[1])


@pytest.mark.slow
def test_logits_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=11, use_cache=False
        )
    ).eval()
    model = GPT(SMALL).eval()
    scramble(model)
    theirs = reference.transformer
    pairs: list[tuple[Any, Any]] = [
        (theirs.wte, model.token_embedding),
        (theirs.wpe, model.position_embedding),
        (theirs.ln_f, model.norm),
    ]
    blocks: Any = model.blocks
    for layer, block in zip(theirs.h, blocks, strict=True):
        pairs += [
            (layer.ln_1, block.norm1),
            (layer.attn.c_attn, block.attention.qkv),
            (layer.attn.c_proj, block.attention.projection),
            (layer.ln_2, block.norm2),
            (layer.mlp.c_fc, block.feed_forward[0]),
            (layer.mlp.c_proj, block.feed_forward[2]),
        ]
    with torch.no_grad():
        for their, our in pairs:
            transposed = type(their).__name__ == "Conv1D"  # Conv1D stores weights as (in, out)
            their.weight.copy_(our.weight.T if transposed else our.weight)
            if getattr(our, "bias", None) is not None:
                their.bias.copy_(our.bias)
        t = tokens()
        torch.testing.assert_close(model(t), reference(t).logits, atol=2e-4, rtol=1e-4)


def test_a_model_without_biases_equals_one_with_zero_biases() -> None:
    with_biases, without = GPT(SMALL).eval(), GPT(replace(SMALL, bias=False)).eval()
    scramble(with_biases)
    weights = with_biases.state_dict()
    for name, weight in weights.items():
        if name.endswith("bias"):
            weight.zero_()
    without.load_state_dict({n: w for n, w in weights.items() if not n.endswith("bias")})
    assert len(without.state_dict()) < len(weights)
    t = tokens()
    torch.testing.assert_close(without(t), with_biases(t))


def test_residual_stream_has_the_precision_of_autocast() -> None:
    model, t = GPT(SMALL), tokens()
    with autocast(torch.device("cpu"), torch.bfloat16):
        x = model.embed(t)
        assert x.dtype == model.blocks[0](x).dtype == torch.bfloat16
    assert model.embed(t).dtype == torch.float32


def test_initial_loss_is_the_logarithm_of_the_vocabulary_size() -> None:
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65))
    t = tokens(64, 65, 65)
    loss = F.cross_entropy(model(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), abs=0.05)


def test_initial_weights_have_the_scales_of_gpt2() -> None:
    model = GPT(GPTConfig(n_layer=8, n_head=4, n_embd=128, block_size=64, vocab_size=65))
    residual = 0.02 / math.sqrt(2 * 8)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            last = "projection" in name or "feed_forward.2" in name
            assert parameter.std().item() == pytest.approx(residual if last else 0.02, rel=0.05)


def test_output_head_and_token_embedding_share_one_table() -> None:
    model = GPT(SMALL)
    shapes = sorted(tuple(p.shape) for p in model.parameters())
    assert shapes.count((11, 32)) == 1


def test_dropout_is_active_only_in_training_mode() -> None:
    model = GPT(replace(SMALL, dropout=0.5))
    scramble(model)
    t = tokens()
    assert not torch.equal(model(t), model(t))
    model.eval()
    assert torch.equal(model(t), model(t))


def test_dropout_applies_to_embeddings_weights_and_sublayers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout applies to embeddings, attention weights, and the output of each sub-layer."""
    model = GPT(replace(SMALL, dropout=0.5))
    scramble(model)
    block: Any = model.blocks[0]
    x = torch.randn(8, 16, 32)
    for output in (model.embed(tokens(8)), block.attention(x), block.feed_forward(x)):
        assert (output == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, **options: Any
    ) -> Tensor:
        dropouts.append(dropout)
        return fused(q, k, v, mask, dropout, **options)

    dropouts: list[float] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    block(x)
    block.eval()(x)
    assert dropouts == [0.5, 0.0]


def test_training_memorises_one_batch() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=32, vocab_size=65))
    t = tokens(8, 33, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = F.cross_entropy(model(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layer", 0, "n_layer is 0: it must be at least 1"),
        ("vocab_size", -3, "vocab_size is -3"),
        ("n_head", 5, "n_embd is 32: it must be a multiple of n_head 5; try n_embd 35"),
        ("dropout", 1.0, "dropout is 1.0"),
        ("dropout", float("nan"), "dropout is nan"),
    ],
)
def test_config_refuses_an_impossible_shape(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_forward_refuses_more_tokens_than_block_size() -> None:
    with pytest.raises(ValueError, match="17 tokens are more than block_size 16"):
        GPT(SMALL)(tokens(1, 17))


@pytest.mark.gpu
@pytest.mark.parametrize("time", [1, 16])
def test_logits_on_a_gpu_equal_those_on_a_cpu(time: int) -> None:
    model = GPT(SMALL).eval()
    scramble(model)
    t = tokens(time=time)
    expected = model(t)
    torch.testing.assert_close(model.cuda()(t.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
