"""models/modern.py compared with explicit formulas."""

import cmath
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.models import Modern, ModernConfig
from nanogpt.models.modern import Attention, LookBack, SquaredReLU, norm, rotate, rotations
from nanogpt.system.devices import autocast

SMALL = ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11)
GATED = replace(SMALL, activation="swiglu")
SKIPS = replace(SMALL, n_layer=5, skips=True)
CONFIGS = [SMALL, GATED, SKIPS, replace(GATED, n_layer=4, skips=True), replace(SKIPS, n_layer=1)]
CONFIGS.append(replace(SMALL, look_back=False))


def tokens(batch: int = 3, time: int = 12) -> Tensor:
    return torch.randint(11, (batch, time))


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Set large random weights, so that no term of the formulas is negligible."""
    for parameter in model.parameters():
        parameter.normal_(std=0.5)


def make_scrambled_model(config: ModernConfig = SMALL) -> Modern:
    model = Modern(config).eval()
    scramble(model)
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_equal_the_formulas(config: ModernConfig) -> None:
    """The formulas compute one token at a time in float64, and rotate q, k as complex numbers."""
    model = make_scrambled_model(config).double()
    w = {name: p.detach() for name, p in model.named_parameters()}
    text = tokens(1)[0].tolist()
    D, expected = 8, []

    def normalise(v: Tensor) -> Tensor:
        return v / (v.square().mean() + torch.finfo(torch.float64).eps).sqrt()

    def rotated(v: Tensor, t: int) -> Tensor:
        rotations = [cmath.exp(1j * t * 1000 ** (-2 * d / D)) for d in range(D // 2)]
        pairs = [complex(v[d], v[d + D // 2]) * r for d, r in enumerate(rotations)]
        parts = [p.real for p in pairs] + [p.imag for p in pairs]
        return torch.tensor(parts, dtype=torch.float64)

    embedded = [w["token_embedding.weight"][token] for token in text]
    near, far = w.get("look_back.weight", torch.zeros(2, 16, dtype=torch.float64))
    zero = torch.zeros(16, dtype=torch.float64)
    before = [zero, zero, *embedded]
    stream = [normalise(x + near * before[t + 1] + far * before[t]) for t, x in enumerate(embedded)]
    outputs: list[list[Tensor]] = []
    L = config.n_layer
    for layer in range(L):
        name = f"blocks.{layer}"
        if config.skips and layer > (L - 1) / 2:
            partner = L - 1 - layer
            pairs = zip(stream, outputs[partner], strict=True)
            stream = [x + w["skips"][partner] * earlier for x, earlier in pairs]
        normed = torch.stack([normalise(x) for x in stream])
        q, k = (normed @ w[f"{name}.attention.qk.weight"].T).chunk(2, dim=-1)
        v = normed @ w[f"{name}.attention.v.weight"].T
        for t in range(len(stream)):
            heads = []
            for h in range(2):
                part = slice(h * D, (h + 1) * D)
                query = rotated(normalise(q[t, part]), t)
                keys = [rotated(normalise(k[s, part]), s) for s in range(t + 1)]
                scores = torch.stack([query @ key / math.sqrt(D) for key in keys])
                heads.append(scores.softmax(0) @ v[: t + 1, part])
            added = w[f"{name}.attention.projection.weight"] @ torch.cat(heads)
            stream[t] = stream[t] + added
        for t, x in enumerate(stream):
            hidden = w[f"{name}.feed_forward.up.weight"] @ normalise(x)
            if config.activation == "swiglu":
                a, b = hidden.chunk(2)
                hidden = a / (1 + (-a).exp()) * b
            else:
                hidden = hidden.clamp(min=0) ** 2
            stream[t] = x + w[f"{name}.feed_forward.down.weight"] @ hidden
        outputs.append(list(stream))
    for x in stream:
        expected.append(15 * torch.tanh(w["head.weight"] @ normalise(x) / 15))
    logits = model(torch.tensor([text]))[0].double()
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_changing_a_token_changes_no_earlier_logit(config: ModernConfig) -> None:
    model = make_scrambled_model(config)
    before = tokens()
    for t in range(12):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % 11
        same = torch.isclose(model(before), model(after), atol=1e-6).all(-1)
        assert same[:, :t].all()
        assert not same[:, t].any()


def test_squared_relu_and_its_gradient_equal_those_of_torch() -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    output: Tensor = SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    expected = F.relu(x).square()
    assert torch.equal(output, expected)
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients)


def test_each_half_of_a_gated_layer_is_one_matrix_of_muon() -> None:
    two = [name for name, count in Modern(GATED).matrices().items() if count == 2]
    names = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attention.qk", "feed_forward.up")]
    assert two == [f"{name}.weight" for name in names]
    assert [n for n, count in Modern(SMALL).matrices().items() if count == 2] == two[::2]


def test_norm_equals_rmsnorm_of_torch() -> None:
    x = torch.randn(5, 16)
    torch.testing.assert_close(norm(x), nn.RMSNorm(16)(x))
    torch.testing.assert_close(norm(x, eps=0.5), nn.RMSNorm(16, eps=0.5)(x))
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(5))


@pytest.mark.parametrize("base", [1000.0, 10_000.0])
def test_rotate_multiplies_complex_numbers(base: float) -> None:
    x = torch.randn(3, 9, 2, 8)
    a, b = x.chunk(2, dim=-1)
    angles = torch.arange(9.0)[:, None, None] * base ** (-torch.arange(4) / 4)
    product = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([product.real, product.imag], dim=-1)
    torch.testing.assert_close(rotate(x, *rotations(torch.arange(9), 8, base)), expected)


def test_scores_depend_only_on_the_distance() -> None:
    cos, sin = rotations(torch.arange(40), 8)
    q, k = torch.randn(2, 8)
    queries, keys = (rotate(x.expand(40, 1, 8), cos, sin).squeeze() for x in (q, k))
    scores = queries @ keys.T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_all_queries_and_keys_have_the_same_norm() -> None:
    attention = Attention(SMALL)
    scramble(attention)
    q, k, v = attention.heads(torch.randn(2, 12, 16), *rotations(torch.arange(12), 8))
    for x in (q, k):
        assert x.shape == (2, 2, 12, 8)
        torch.testing.assert_close(x.norm(dim=-1), torch.full((2, 2, 12), math.sqrt(8)))
    assert v.norm(dim=-1).std() > 0.1


def test_look_back_is_a_causal_depthwise_convolution() -> None:
    look_back = LookBack(SMALL)
    x = torch.randn(3, 12, 16)
    assert torch.equal(look_back(x), x)  # the initial weights are zero
    scramble(look_back)
    kernel = torch.stack([*look_back.weight.flip(0), torch.ones(16)], dim=-1)  # (C, 3)
    expected = F.conv1d(x.mT, kernel[:, None], padding=2, groups=16)[..., :12].mT
    torch.testing.assert_close(look_back(x), expected)
    torch.testing.assert_close(look_back(x[:, :1]), x[:, :1])


@pytest.mark.parametrize("config", CONFIGS)
def test_attention_weights_equal_those_of_the_forward_pass(
    config: ModernConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, t, calls = make_scrambled_model(config), tokens(), []
    weights = model.attention_weights(t)
    assert weights.shape == (config.n_layer, 3, 2, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(config.n_layer, 3, 2, 12))
    fused = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *options: Any, **named: Any) -> Tensor:
        calls.append((v, fused(q, k, v, *options, **named)))
        return calls[-1][1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    model(t)
    for of_block, (v, output) in zip(weights, calls, strict=True):
        torch.testing.assert_close(of_block @ v, output, atol=1e-5, rtol=1e-4)


def test_blocks_start_as_the_identity() -> None:
    model, t = Modern(SMALL), tokens()
    x, cos, sin = model.embed(t)
    torch.testing.assert_close(x, norm(model.token_embedding(t)))
    for block in model.blocks:
        assert torch.equal(block(x, cos, sin), x)
    loss = F.cross_entropy(model(t).flatten(0, 1), t.flatten())
    assert loss.item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_gets_a_gradient_after_two_steps(config: ModernConfig) -> None:
    """Step 1 changes the layers that start at zero; then the layers before them get gradients."""
    model, t = Modern(config), tokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(t).flatten(0, 1), t.roll(-1, 1).flatten()).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_logits_stay_between_minus_15_and_15() -> None:
    model = make_scrambled_model()
    with torch.no_grad():
        model.head.weight.mul_(1000)
    logits = model(tokens())
    assert 14.9 < logits.abs().max() <= 15


def test_residual_stream_has_the_precision_of_autocast_and_logits_are_float32() -> None:
    model = make_scrambled_model()
    with autocast(torch.device("cpu"), torch.bfloat16):
        x, cos, _ = model.embed(tokens())
        assert x.dtype == cos.dtype == torch.bfloat16
        assert model.blocks[0](*model.embed(tokens())).dtype == torch.bfloat16
        assert model(tokens()).dtype == torch.float32
    assert model.embed(tokens())[0].dtype == torch.float32


def test_dropout_applies_to_weights_and_sublayers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout applies to attention weights and the output of each sub-layer, not to embeddings."""
    model = Modern(replace(SMALL, dropout=0.5))
    scramble(model)
    t = tokens()
    x, cos, sin = model.embed(t)
    assert torch.equal(model.embed(t)[0], x)
    block: Any = model.blocks[0]
    wide = x.repeat(40, 1, 1)
    for output in (block.attention(wide, cos, sin), block.feed_forward(wide)):
        assert (output == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    dropouts: list[float] = []
    fused = F.scaled_dot_product_attention

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, **options: Any
    ) -> Tensor:
        dropouts.append(dropout)
        return fused(q, k, v, mask, dropout, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    block(x, cos, sin)
    block.eval()(x, cos, sin)
    assert dropouts == [0.5, 0.0]
    assert torch.equal(model.eval()(t), model(t))


@pytest.mark.slow
def test_training_memorises_one_batch() -> None:
    model = Modern(ModernConfig(n_layer=2, n_head=4, n_embd=64, block_size=32, vocab_size=65))
    t = torch.randint(65, (8, 33))
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
        ("n_head", 3, "n_embd is 16: it must be a multiple of twice n_head, 6; try n_embd 18"),
        ("n_head", 16, "n_embd is 16: it must be a multiple of twice n_head, 32; try n_embd 32"),
        ("dropout", 1.0, "dropout is 1.0: it must be at least 0 and less than 1"),
    ],
)
def test_config_refuses_an_impossible_shape(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_forward_refuses_more_tokens_than_block_size() -> None:
    with pytest.raises(ValueError, match="13 tokens are more than block_size 12"):
        Modern(SMALL)(tokens(1, 13))
