"""models/modern.py against the formulas written out, and against its promises."""

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


def tokens(batch: int = 3, time: int = 12) -> Tensor:
    return torch.randint(11, (batch, time))


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Weights far from their zeros: no term is negligible."""
    for parameter in model.parameters():
        parameter.normal_(std=0.5)


def lively(config: ModernConfig = SMALL) -> Modern:
    model = Modern(config).eval()
    scramble(model)
    return model


def test_it_is_what_is_written_out() -> None:
    """Token by token in float64, with complex numbers for the rotations, and no batch."""
    model = lively().double()
    w = {name: p.detach() for name, p in model.named_parameters()}
    text = tokens(1)[0].tolist()
    D, expected = 8, []

    def length(v: Tensor) -> Tensor:
        return v / (v.square().mean() + torch.finfo(torch.float64).eps).sqrt()

    def turned(v: Tensor, t: int) -> Tensor:
        turns = [cmath.exp(1j * t * 1000 ** (-2 * d / D)) for d in range(D // 2)]
        pairs = [complex(v[d], v[d + D // 2]) * turn for d, turn in enumerate(turns)]
        parts = [p.real for p in pairs] + [p.imag for p in pairs]
        return torch.tensor(parts, dtype=torch.float64)

    embedded = [w["token_embedding.weight"][token] for token in text]
    near, far = w["look_back.weight"]
    nothing = torch.zeros(16, dtype=torch.float64)
    before = [nothing, nothing, *embedded]
    stream = [length(x + near * before[t + 1] + far * before[t]) for t, x in enumerate(embedded)]
    for layer in range(2):
        name = f"blocks.{layer}"
        normed = torch.stack([length(x) for x in stream])
        q, k = (normed @ w[f"{name}.attention.qk.weight"].T).chunk(2, dim=-1)
        v = normed @ w[f"{name}.attention.v.weight"].T
        for t in range(len(stream)):
            heads = []
            for h in range(2):
                part = slice(h * D, (h + 1) * D)
                asks = turned(length(q[t, part]), t)
                keys = [turned(length(k[s, part]), s) for s in range(t + 1)]
                scores = torch.stack([asks @ key / math.sqrt(D) for key in keys])
                heads.append(scores.softmax(0) @ v[: t + 1, part])
            gathered = w[f"{name}.attention.projection.weight"] @ torch.cat(heads)
            stream[t] = stream[t] + gathered
        for t, x in enumerate(stream):
            hidden = w[f"{name}.feed_forward.up.weight"] @ length(x)
            hidden = hidden.clamp(min=0) ** 2
            stream[t] = x + w[f"{name}.feed_forward.down.weight"] @ hidden
    for x in stream:
        expected.append(15 * torch.tanh(w["head.weight"] @ length(x) / 15))
    found = model(torch.tensor([text]))[0].double()
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_a_later_token_changes_no_earlier_logit() -> None:
    model = lively()
    before = tokens()
    for place in range(12):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % 11
        same = torch.isclose(model(before), model(after), atol=1e-6).all(-1)
        assert same[:, :place].all()
        assert not same[:, place].any()  # and the token itself does matter


def test_the_activation_is_the_square_of_relu() -> None:
    """And so is its gradient."""
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    found: Tensor = SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    expected = F.relu(x).square()
    assert torch.equal(found, expected)
    weights = torch.randn_like(x)
    slopes = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_the_norm_is_that_of_torch() -> None:
    x = torch.randn(5, 16)
    torch.testing.assert_close(norm(x), nn.RMSNorm(16)(x))
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(5))


def test_a_rotation_is_a_product_of_complex_numbers() -> None:
    x = torch.randn(3, 9, 2, 8)
    a, b = x.chunk(2, dim=-1)
    angles = torch.arange(9.0)[:, None, None] * 1000.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, *rotations(torch.arange(9), 8)), expected)


def test_scores_depend_on_the_distance_alone() -> None:
    cos, sin = rotations(torch.arange(40), 8)
    q, k = torch.randn(2, 8)
    queries, keys = (rotate(x.expand(40, 1, 8), cos, sin).squeeze() for x in (q, k))
    scores = queries @ keys.T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_queries_and_keys_have_one_length() -> None:
    attention = Attention(SMALL)
    scramble(attention)
    q, k, v = attention.heads(torch.randn(2, 12, 16), *rotations(torch.arange(12), 8))
    for x in (q, k):
        assert x.shape == (2, 2, 12, 8)
        torch.testing.assert_close(x.norm(dim=-1), torch.full((2, 2, 12), math.sqrt(8)))
    assert v.norm(dim=-1).std() > 0.1


def test_looking_back_is_a_causal_depthwise_convolution() -> None:
    back = LookBack(SMALL)
    x = torch.randn(3, 12, 16)
    assert torch.equal(back(x), x)  # until it has learned to look
    scramble(back)
    kernel = torch.stack([back.weight[1], back.weight[0], torch.ones(16)], dim=-1)  # (C, 3)
    expected = F.conv1d(x.mT, kernel[:, None], padding=2, groups=16)[..., :12].mT
    torch.testing.assert_close(back(x), expected)
    torch.testing.assert_close(back(x[:, :1]), x[:, :1])


def test_attention_weights_are_those_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, t, seen = lively(), tokens(), []
    weights = model.attention_weights(t)
    assert weights.shape == (2, 3, 2, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 2, 12))
    fused = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        seen.append((v, fused(q, k, v, **how)))
        return seen[-1][1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    model(t)
    for found, (v, gathered) in zip(weights, seen, strict=True):
        torch.testing.assert_close(found @ v, gathered, atol=1e-5, rtol=1e-4)


def test_every_path_begins_as_if_it_were_not_there() -> None:
    model, t = Modern(SMALL), tokens()
    x, cos, sin = model.embed(t)
    torch.testing.assert_close(x, norm(model.token_embedding(t)))
    for block in model.blocks:
        assert torch.equal(block(x, cos, sin), x)
    loss = F.cross_entropy(model(t).flatten(0, 1), t.flatten())
    assert loss.item() == pytest.approx(math.log(11))


def test_every_parameter_gets_a_gradient_after_two_steps() -> None:
    """What begins at zero does not stay there, and what is behind it learns, too."""
    model, t = Modern(SMALL), tokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(t).flatten(0, 1), t.roll(-1, 1).flatten()).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_logits_stay_within_15() -> None:
    model = lively()
    with torch.no_grad():
        model.head.weight.mul_(1000)
    logits = model(tokens())
    assert 14.9 < logits.abs().max() <= 15


def test_the_stream_runs_at_the_precision_of_the_products_and_logits_do_not() -> None:
    model = lively()
    with autocast(torch.device("cpu"), torch.bfloat16):
        x, cos, _ = model.embed(tokens())
        assert x.dtype == cos.dtype == torch.bfloat16
        assert model.blocks[0](*model.embed(tokens())).dtype == torch.bfloat16
        assert model(tokens()).dtype == torch.float32
    assert model.embed(tokens())[0].dtype == torch.float32


def test_dropout_is_in_its_three_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the attention weights, and on what each sub-layer adds; not on the embeddings."""
    model = Modern(replace(SMALL, dropout=0.5))
    scramble(model)
    t = tokens()
    x, cos, sin = model.embed(t)
    assert torch.equal(model.embed(t)[0], x)
    block: Any = model.blocks[0]
    wide = x.repeat(40, 1, 1)
    for output in (block.attention(wide, cos, sin), block.feed_forward(wide)):
        assert (output == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    asked: list[float] = []
    fused = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        asked.append(how["dropout_p"])
        return fused(q, k, v, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    block(x, cos, sin)
    block.eval()(x, cos, sin)
    assert asked == [0.5, 0.0]
    assert torch.equal(model.eval()(t), model(t))


def test_a_batch_is_learned_by_heart() -> None:
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
    ("field", "value", "says"),
    [
        ("n_layer", 0, "n_layer is 0: it must be at least 1"),
        ("n_head", 3, "n_embd is 16, which twice n_head 3 does not divide: try n_embd 18"),
        ("n_head", 16, "n_embd is 16, which twice n_head 16 does not divide: try n_embd 32"),
        ("dropout", 1.0, "dropout is 1.0: it must be at least 0 and less than 1"),
    ],
)
def test_an_impossible_shape_is_named(field: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens are more than block_size 12"):
        Modern(SMALL)(tokens(1, 13))
