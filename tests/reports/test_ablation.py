"""Switching off a part of a model gives the same logits as deleting it or zeroing its weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nanogpt.errors import UserError
from nanogpt.models import Bigram, BigramConfig, GPTConfig, Model, ModernConfig, PlainConfig, build
from nanogpt.reports.ablation import list_parts, switched_off

SHAPE: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "block_size": 12,
    "vocab_size": 7,
}
TOKENS = torch.arange(12)[None] % 7


def make(config: object) -> Model:
    model = build(config)  # type: ignore[arg-type]
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.eval()


@pytest.fixture(params=[GPTConfig, ModernConfig])
def model(request: pytest.FixtureRequest) -> Model:
    return make(request.param(**SHAPE))


@torch.no_grad()
def zero(model: Model, name: str, columns: slice = slice(None)) -> None:
    """Set columns of a parameter (..., C) to 0."""
    model.get_parameter(name)[..., columns] = 0


@torch.no_grad()
def compare(model: Model, part: str, change: Callable[[Model], None]) -> None:
    before = model(TOKENS)
    with switched_off(model, [part]):
        without = model(TOKENS)
    assert torch.equal(model(TOKENS), before)  # the model is unchanged
    assert not torch.allclose(without, before)
    change(model)
    torch.testing.assert_close(without, model(TOKENS))


def test_without_a_head(model: Model) -> None:
    name, columns = "blocks.1.attention.projection.weight", slice(2 * 4, 3 * 4)
    compare(model, "head 2.3", lambda m: zero(m, name, columns))


def test_without_a_feed_forward_layer(model: Model) -> None:
    def change(m: Model) -> None:
        if isinstance(m.config, GPTConfig):
            zero(m, "blocks.0.feed_forward.2.weight")
            zero(m, "blocks.0.feed_forward.2.bias")
        else:
            zero(m, "blocks.0.feed_forward.down.weight")

    compare(model, "feed-forward 1", change)


def test_without_a_block(model: Model) -> None:
    def change(m: Model) -> None:
        blocks = m.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        del blocks[0]

    compare(model, "block 1", change)


def test_without_positions() -> None:
    compare(make(GPTConfig(**SHAPE)), "positions", lambda m: zero(m, "position_embedding.weight"))
    modern = make(ModernConfig(**SHAPE))
    repeated = torch.full((1, 6), 3)
    with switched_off(modern, ["positions", "look-back"]):
        logits = modern(repeated)
        assert not isinstance(modern, Bigram)
        weights = modern.attention_weights(repeated)[0, 0, 0, -1]
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))  # equal at all positions
    torch.testing.assert_close(weights, torch.full((6,), 1 / 6))
    assert not torch.allclose(modern(repeated)[0, 0], modern(repeated)[0, 5])


def test_without_the_look_back() -> None:
    compare(make(ModernConfig(**SHAPE)), "look-back", lambda m: zero(m, "look_back.weight"))


def test_all_parts_can_be_switched_off_together(model: Model) -> None:
    parts = list_parts(model)
    before = model(TOKENS)
    with switched_off(model, parts):
        off = model(TOKENS)
    assert off.isfinite().all()
    assert torch.equal(model(TOKENS), before)
    same = TOKENS[0] == 3
    assert torch.allclose(off[0, same], off[0, same][:1].expand_as(off[0, same]), atol=1e-5)


def test_other_models_have_their_own_parts() -> None:
    assert list_parts(make(BigramConfig(vocab_size=3))) == []
    plain = make(PlainConfig(**SHAPE))
    assert "feed-forward 1" not in list_parts(plain)
    assert "head 2.4" in list_parts(plain)
    with switched_off(plain, list_parts(plain)):
        assert plain(TOKENS).isfinite().all()


def test_an_unknown_part_is_refused(model: Model) -> None:
    with (
        pytest.raises(UserError, match=r"the model has no part 'head 3.1': its parts are head 1.1"),
        switched_off(model, ["head 1.1", "head 3.1"]),
    ):
        pass
    assert not model.get_submodule("blocks.0.attention.projection")._forward_pre_hooks
