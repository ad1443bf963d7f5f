"""Switches off parts of a model temporarily; the weights of the model do not change.

The parts have names such as "head 2.3" (layer 2, head 3), "feed-forward 2", "block 2", "positions"
and "look-back". Layers and heads are counted from 1.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import Bigram, Model, Modern, Plain


def list_parts(model: Model) -> list[str]:
    """Return the names of all parts of a model that can be switched off."""
    if isinstance(model, Bigram):
        return []
    adds = not isinstance(model, Plain) or model.config.residual  # type: ignore[attr-defined]
    names = []
    for layer in range(1, model.config.n_layer + 1):
        names += [f"head {layer}.{head}" for head in range(1, model.config.n_head + 1)]
        names += [f"feed-forward {layer}"] * adds + [f"block {layer}"]
    has_look_back = isinstance(model, Modern) and model.look_back is not None
    return [*names, "positions", *(["look-back"] if has_look_back else [])]


@contextmanager
def switched_off(model: Model, parts: Collection[str]) -> Iterator[None]:
    """Within this context, the named parts of a model are switched off.

    Heads, feed-forward layers and blocks then add nothing to the residual stream. Without
    "positions", the position embedding is 0; in a modern model, queries and keys are not rotated.
    Without "look-back", the embedding of a token is not mixed with those of earlier tokens. Raises
    UserError for an unknown part.
    """
    known = list_parts(model)
    if unknown := sorted(set(parts) - {*known}):
        raise UserError(f"the model has no part {unknown[0]!r}: its parts are {', '.join(known)}")
    hooks: list[Any] = []
    try:
        for part in parts:
            kind, _, place = part.partition(" ")
            if kind in ("head", "feed-forward", "block"):
                layer, _, head = place.partition(".")
                block = model.get_submodule(f"blocks.{int(layer) - 1}")
            if kind == "head":
                assert not isinstance(model, Bigram)  # a bigram has no parts
                width = model.config.n_embd // model.config.n_head
                projection = block.get_submodule("attention.projection")
                hooks.append(projection.register_forward_pre_hook(_clear((int(head) - 1), width)))
            elif kind == "feed-forward":
                feed_forward = block.get_submodule("feed_forward")
                hooks.append(feed_forward.register_forward_hook(_return_zeros))
            elif kind == "block":
                hooks.append(block.register_forward_hook(_return_input))
            elif kind == "look-back":
                look_back = model.get_submodule("look_back")
                hooks.append(look_back.register_forward_hook(_return_input))
            elif isinstance(model, Modern):
                model.embed = _embed_without_rotation(model.embed)  # type: ignore[method-assign]
            else:
                table = model.get_submodule("position_embedding")
                hooks.append(table.register_forward_hook(_return_zeros))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.__dict__.pop("embed", None)


def _clear(head: int, width: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Return a hook that sets the channels of a head to 0 in the input of the projection."""

    def clear(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        y = inputs[0].clone()
        y[..., head * width : (head + 1) * width] = 0
        return (y,)

    return clear


def _return_zeros(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _return_input(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> Tensor:
    return inputs[0]


def _embed_without_rotation(
    embed: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a function like Modern.embed(), but with all rotary angles equal to 0."""

    def embed_without_rotation(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, cos, sin = embed(*args)
        return x, torch.ones_like(cos), torch.zeros_like(sin)

    return embed_without_rotation
