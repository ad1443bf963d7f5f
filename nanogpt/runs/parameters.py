"""Formulas for the number of parameters of a model.

No model is built, so the result is immediate, even for an enormous model.

Dimensions: L = n_layer, C = n_embd, T = block_size, V = vocab_size.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ..models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, PlainConfig
from .config import is_float8_layer


@dataclass(frozen=True)
class Line:
    """One row of a table: a quantity, its formula and its value."""

    part: str
    formula: str
    value: float
    total: bool = False
    """Whether the value summarises the rows above."""


def count_parameters(model: ModelConfig) -> list[Line]:
    """Count the parameters of each part of a model, and their sum."""
    V, T = model.vocab_size, model.block_size
    if isinstance(model, BigramConfig):
        lines = [Line("table", "V V", V * V)]
    else:
        C, L = model.n_embd, model.n_layer
        lines = [Line("token embedding", "V C", V * C)]
        if isinstance(model, GPTConfig):
            lines.append(Line("position embedding", "T C", T * C))
            if model.bias:
                lines += [
                    Line("attention", "L (4 C² + 4 C)", L * (4 * C * C + 4 * C)),
                    Line("feed-forward", "L (8 C² + 5 C)", L * (8 * C * C + 5 * C)),
                    Line("layer norms", "(2 L + 1) 2 C", (2 * L + 1) * 2 * C),
                ]
            else:
                lines += [
                    Line("attention", "L 4 C²", L * 4 * C * C),
                    Line("feed-forward", "L 8 C²", L * 8 * C * C),
                    Line("layer norms", "(2 L + 1) C", (2 * L + 1) * C),
                ]
            if isinstance(model, PlainConfig):  # no norms; feed-forward layers are optional
                lines = lines[:-1] if model.feed_forward else lines[:-2]
            lines.append(Line("head", "shared with the token embedding", 0))
        else:
            lines += [Line("look-back", "2 C", 2 * C)] if model.look_back else []
            lines += [
                Line("attention", "L 4 C²", L * 4 * C * C),
                Line("feed-forward", *_count_feed_forward(model)),
                Line("head", "V C", V * C),
            ]
            if model.skips:
                lines.insert(-1, Line("skips", "L / 2, rounded down", L // 2))
    return [*lines, Line("parameters", "N, the sum", sum(line.value for line in lines), True)]


def _count_feed_forward(model: ModernConfig) -> tuple[str, int]:
    """Return the number of weights of the feed-forward layers: a formula and its value."""
    L, C, hidden = model.n_layer, model.n_embd, model.n_hidden
    if model.activation == "swiglu":
        return f"L 3 C {hidden}", L * 3 * C * hidden
    return "L 8 C²", L * 8 * C * C


def count_matrix_weights(model: ModelConfig) -> int:
    """Count the weights in the matrix products of the blocks, without biases."""
    if isinstance(model, BigramConfig):
        return 0
    attention = model.n_layer * 4 * model.n_embd**2
    if isinstance(model, ModernConfig):
        return attention + _count_feed_forward(model)[1]
    return attention * (3 if has_feed_forward(model) else 1)


def has_feed_forward(model: ModelConfig) -> bool:
    """Return whether the blocks of a model have feed-forward layers."""
    return not isinstance(model, PlainConfig) or model.feed_forward


class Layers(NamedTuple):
    """The linear layers of a block: the number of inputs and outputs of each."""

    first: list[tuple[int, int]]
    """The layers whose input is the output of the first norm."""
    projection: tuple[int, int]
    feed_forward: list[tuple[int, int]]
    """The layers before and after the activation function; empty if there are none."""


def list_layers(model: GPTConfig | ModernConfig) -> Layers:
    """List the linear layers of a block."""
    C = model.n_embd
    if isinstance(model, ModernConfig):
        hidden = model.n_hidden
        up = 2 * hidden if model.activation == "swiglu" else hidden
        return Layers([(C, 2 * C), (C, C)], (C, C), [(C, up), (hidden, C)])
    feed_forward = [(C, 4 * C), (4 * C, C)] if has_feed_forward(model) else []
    return Layers([(C, 3 * C)], (C, C), feed_forward)


def count_float8_weights(model: GPTConfig | ModernConfig) -> int:
    """Count the weights of the blocks' linear layers that a run in float8 has in float8."""
    first, projection, feed_forward = list_layers(model)
    layers = [*first, projection, *feed_forward]
    return model.n_layer * sum(K * N for K, N in layers if is_float8_layer(K, N))
