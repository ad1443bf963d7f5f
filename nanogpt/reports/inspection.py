"""Shows what a model computes for a text, on one web page that loads no other files.

Dimensions: B batch, T tokens, C channels, V vocabulary, L layers, H heads.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import Bigram, Model
from ..system.schema import shorten
from ..text.glyphs import decode_token_bytes, make_visible
from ..text.tokenizers import Tokenizer
from .inlining import inline_page

SHOWN_TOKENS = 128
"""Largest number of tokens on the page: with more tokens, attention maps are unreadable."""
SHOWN_PREDICTIONS = 12
"""Number of predicted tokens that are shown for each position."""
LARGE_VOCABULARY = 200
"""If the vocabulary is larger than this, the plot of the embedding shows only some tokens."""
DIGITS = 4
"""Decimal places of the values on the page."""


@dataclass(frozen=True)
class Prediction:
    """A possible next token and its probability."""

    token: str
    p: float


@dataclass(frozen=True)
class EmbeddedToken:
    """A token and its coordinates in the plot of the embedding."""

    token: str
    x: float
    y: float


@dataclass(frozen=True)
class Inspection:
    """What a model computes for a text of T tokens."""

    title: str
    tokens: list[str]
    """The T tokens, with invisible characters made visible."""
    n_hidden: int
    """Number of earlier tokens that are in the model's input but not on the page."""
    attention: list[list[list[list[float]]]]
    """Attention weights by layer, head and position t, over positions 0 to t."""
    hidden_attention: list[list[list[float]]]
    """Sum of the attention weights on the hidden tokens, by layer, head and position."""
    predictions: list[list[Prediction]]
    """The most probable next tokens at each position."""
    probabilities: list[float]
    """The probability of each token given the tokens before it, from the second token on."""
    ranks: list[int]
    """The rank of each token by probability, from the second token on; 1 is the most probable."""
    loss: float
    """Mean of -ln p over `probabilities`, in nats per token."""
    lens_predictions: list[list[Prediction]]
    """The logit lens: the most probable next token at each position if the output head is applied
    after a block. Entry 0 uses the input of the first block; entry i uses the output of block i."""
    lens_probabilities: list[list[float]]
    """The probability that the logit lens gives to the actual next token, by entry and position."""
    stream_norms: list[list[float]]
    """The Euclidean norm of the residual stream by layer and position; entry 0 is the input of the
    first block, and entry i is the output of block i."""
    branch_norms: list[list[list[float]]]
    """The Euclidean norms of the outputs of attention and of feed-forward (the two branches), by
    layer, branch and position."""
    vocab_size: int
    embedding: list[EmbeddedToken]
    """Tokens in the plane of the first two principal components of the embedding. These are all
    tokens or, for a large vocabulary, only the tokens of the text and of the predictions."""
    explained_variance: float
    """The share of the embedding's variance that the first two principal components explain."""


@torch.no_grad()
def inspect_text(model: Model, tokenizer: Tokenizer, text: str, title: str) -> Inspection:
    """Run a model on the last block_size tokens of a text and record what it computes.

    The result shows the last SHOWN_TOKENS of these tokens. Raises UserError if the tokenizer cannot
    encode the text, or drops all of it.
    """
    ids = tokenizer.encode(text)[-model.config.block_size :]
    if not ids:
        raise UserError(f"{shorten(text)} has no tokens: the tokenizer drops it; use another text")
    n_hidden = max(0, len(ids) - SHOWN_TOKENS)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)  # (1, n_hidden + T)
    names = name_tokens(tokenizer)
    model.eval()
    with _record_hidden_states(model) as (hidden_states, branches):
        p = model(tokens).float().softmax(-1)[0, n_hidden:].cpu()  # (T, V)
    if isinstance(model, Bigram):
        attention, vectors, lens = torch.empty(0, 1, 1, 1), model.table.weight, [p]
    else:
        attention, vectors = model.attention_weights(tokens)[:, 0], model.token_embedding.weight
        lens = [
            model.unembed(x).float().softmax(-1)[0, n_hidden:].cpu()  # (T, V)
            for x in hidden_states
        ]
    attention = attention[..., n_hidden:, :].float().cpu()  # (L, H, T, n_hidden + T)
    ids = ids[n_hidden:]
    targets = torch.tensor(ids[1:], dtype=torch.long)[:, None]  # (T - 1, 1)
    target_p = p[:-1].gather(1, targets)  # (T - 1, 1)
    predicted = p.topk(min(SHOWN_PREDICTIONS, len(names))).indices
    plotted = [*range(len(names))]
    if len(names) > LARGE_VOCABULARY:
        plotted = sorted({*ids, *predicted.flatten().tolist()})
    coordinates, explained_variance = project_to_plane(vectors.float().cpu()[plotted])
    return Inspection(
        title=title,
        tokens=[names[i] for i in ids],
        n_hidden=n_hidden,
        attention=[
            [[_round(row[n_hidden : n_hidden + t + 1]) for t, row in enumerate(h)] for h in layer]
            for layer in attention
        ],
        hidden_attention=[
            [_round(h) for h in layer] for layer in attention[..., :n_hidden].sum(-1)
        ],
        predictions=[_select_top(row, names, SHOWN_PREDICTIONS) for row in p],
        probabilities=_round(target_p[:, 0]),
        ranks=(p[:-1] >= target_p).sum(-1).tolist(),
        loss=-target_p.clamp(min=1e-30).log().mean().item() if len(ids) > 1 else 0.0,
        lens_predictions=[[_select_top(row, names, 1)[0] for row in layer] for layer in lens],
        lens_probabilities=[_round(layer[:-1].gather(1, targets)[:, 0]) for layer in lens],
        stream_norms=[_round(x[0, n_hidden:].float().norm(dim=-1)) for x in hidden_states],
        branch_norms=[
            [_round(x[0, n_hidden:].float().norm(dim=-1)) for x in outputs] for outputs in branches
        ],
        vocab_size=len(names),
        embedding=[
            EmbeddedToken(names[i], *_round(xy)) for i, xy in zip(plotted, coordinates, strict=True)
        ],
        explained_variance=round(explained_variance, DIGITS),
    )


def name_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the text of every token, with invisible characters made visible."""
    ids = range(tokenizer.vocab_size)
    return [make_visible(decode_token_bytes(tokenizer.token_bytes(i))) for i in ids]


@contextmanager
def _record_hidden_states(model: Model) -> Iterator[tuple[list[Tensor], list[list[Tensor]]]]:
    """Yield two lists that record tensors (B, T, C) of the next forward pass.

    The first list gets the input of the first block and the outputs of all blocks. The second list
    gets, for each block, the outputs of attention and feed-forward.
    """
    states: list[Tensor] = []
    branches: list[list[Tensor]] = []
    blocks = [*model.get_submodule("blocks").children()] if hasattr(model, "blocks") else []

    def record_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0])

    def record_output(_: nn.Module, __: object, output: Tensor) -> None:
        states.append(output)

    def record_attention(_: nn.Module, __: object, output: Tensor) -> None:
        branches.append([output])

    def record_feed_forward(_: nn.Module, __: object, output: Tensor) -> None:
        branches[-1].append(output)

    hooks = [block.register_forward_hook(record_output) for block in blocks]
    hooks += [block.register_forward_pre_hook(record_input) for block in blocks[:1]]
    for block in blocks:
        hooks.append(block.get_submodule("attention").register_forward_hook(record_attention))
        feed_forward = block.get_submodule("feed_forward")
        hooks.append(feed_forward.register_forward_hook(record_feed_forward))
    try:
        yield states, branches
    finally:
        for hook in hooks:
            hook.remove()


def project_to_plane(vectors: Tensor) -> tuple[Tensor, float]:
    """Return the first two principal components (V, 2) of vectors (V, C), and the share of the
    variance that they explain."""
    centred = vectors - vectors.mean(dim=0)
    U, S, _ = torch.linalg.svd(centred, full_matrices=False)
    components = torch.zeros(len(vectors), 2)
    components[:, : len(S)] = (U * S)[:, :2]
    return components, ((S[:2] ** 2).sum() / (S**2).sum().clamp(min=1e-12)).item()


def render_page(inspection: Inspection) -> str:
    """Return the web page of an inspection. It contains the modules and the style that it uses."""
    folder = files(__package__) / "page"
    template = (folder / "inspection.html").read_text("utf-8")
    return inline_page(template, [folder], json.dumps(asdict(inspection), ensure_ascii=False))


def _select_top(p: Tensor, names: list[str], n: int) -> list[Prediction]:
    """Return the n most probable tokens of a distribution (V,)."""
    top = p.topk(min(n, len(p)))
    pairs = zip(top.indices.tolist(), _round(top.values), strict=True)
    return [Prediction(names[i], value) for i, value in pairs]


def _round(values: Tensor) -> list[float]:
    """Return the values (N,), rounded to DIGITS decimal places."""
    return [round(value, DIGITS) for value in values.tolist()]
