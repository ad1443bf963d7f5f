"""What a model does with a text, to look at: a web page that needs nothing but itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

from ..models import Bigram, Model
from ..text.tokenizers import Tokenizer

SHOWN_TOKENS = 128
"""Tokens of a text that are shown: with more, nobody could read the pictures of attention."""
SHOWN_PREDICTIONS = 12
"""Tokens shown of those that could come next."""
LARGE_VOCABULARY = 200
"""Tokens of a vocabulary from which on only some are shown in the plane."""
DIGITS = 4
"""Behind the point, of the numbers on the page."""


@dataclass(frozen=True)
class Prediction:
    """A token that could come next."""

    token: str
    p: float


@dataclass(frozen=True)
class EmbeddedToken:
    """A token in the plane."""

    token: str
    x: float
    y: float


@dataclass(frozen=True)
class Inspection:
    """A text, as a model reads it."""

    title: str
    tokens: list[str]
    """T of them."""
    hidden: int
    """How many before these the model had read, too."""
    attention: list[list[list[list[float]]]]
    """Of every layer and head, for each position where it looks: at 1, 2, … T positions."""
    earlier: list[list[list[float]]]
    """Of every layer and head, for each position how much goes to what is hidden."""
    following: list[list[Prediction]]
    """For each position the likeliest that come next."""
    given: list[float]
    """The probability that each token but the first had."""
    ranks: list[int]
    """How many tokens had at least as high a one, itself included."""
    loss: float
    """The mean of -ln of these probabilities, in nats per token."""
    lens: list[list[Prediction]]
    """For what goes into the first layer and what comes out of each, the likeliest at each position
    if that layer were the last."""
    lens_given: list[list[float]]
    """And the probability of the token that came, for every position but the last."""
    vocabulary: int
    """How many tokens there are."""
    embedding: list[EmbeddedToken]
    """Tokens by the two directions in which their embeddings differ most: all, or where there are
    many those of the text and the likeliest."""
    explained: float
    """The part of the variance of the embeddings that these two have."""


@torch.no_grad()
def inspect_text(model: Model, tokenizer: Tokenizer, text: str, title: str) -> Inspection:
    """What a model does with a text: it reads the last block_size tokens.

    Raises UserError for a text that the tokenizer cannot read.
    """
    ids = tokenizer.encode(text)[-model.config.block_size :]
    hidden = max(0, len(ids) - SHOWN_TOKENS)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    names = [_shown(tokenizer.piece(i)) for i in range(tokenizer.vocab_size)]
    model.eval()
    with _record_hidden_states(model) as streams:
        p = model(tokens).float().softmax(-1)[0, hidden:].cpu()  # (T, V)
    if isinstance(model, Bigram):
        attention, vectors, lens = torch.empty(0, 1, 1, 1), model.table.weight, [p]
    else:
        attention, vectors = model.attention_weights(tokens)[:, 0], model.token_embedding.weight
        lens = [model.unembed(x).float().softmax(-1)[0, hidden:].cpu() for x in streams]
    attention = attention[..., hidden:, :].float().cpu()  # (L, H, T, hidden + T)
    ids = ids[hidden:]
    came = torch.tensor(ids[1:], dtype=torch.long)[:, None]
    given = p[:-1].gather(1, came)  # (T - 1, 1)
    likely = p.topk(min(SHOWN_PREDICTIONS, len(names))).indices
    some = (
        sorted({*ids, *likely.flatten().tolist()})
        if len(names) > LARGE_VOCABULARY
        else range(len(names))
    )
    places, explained = project_to_plane(vectors.float().cpu()[list(some)])
    return Inspection(
        title=title,
        tokens=[names[i] for i in ids],
        hidden=hidden,
        attention=[
            [[_round(row[hidden : hidden + t + 1]) for t, row in enumerate(h)] for h in layer]
            for layer in attention
        ],
        earlier=[[_round(h) for h in layer] for layer in attention[..., :hidden].sum(-1)],
        following=[_predict(row, names, SHOWN_PREDICTIONS) for row in p],
        given=_round(given[:, 0]),
        ranks=(p[:-1] >= given).sum(-1).tolist(),
        loss=-given.clamp(min=1e-30).log().mean().item() if len(ids) > 1 else 0.0,
        lens=[[_predict(row, names, 1)[0] for row in layer] for layer in lens],
        lens_given=[_round(layer[:-1].gather(1, came)[:, 0]) for layer in lens],
        vocabulary=len(names),
        embedding=[
            EmbeddedToken(names[i], *_round(xy)) for i, xy in zip(some, places, strict=True)
        ],
        explained=round(explained, DIGITS),
    )


@contextmanager
def _record_hidden_states(model: Model) -> Iterator[list[Tensor]]:
    """Within it, the stream (B, T, C) before the first block of a model and after each is kept."""
    kept: list[Tensor] = []
    blocks = [*model.get_submodule("blocks").children()] if hasattr(model, "blocks") else []

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])

    def after(_: nn.Module, __: object, output: Tensor) -> None:
        kept.append(output)

    hooks = [block.register_forward_hook(after) for block in blocks]
    hooks += [block.register_forward_pre_hook(before) for block in blocks[:1]]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def project_to_plane(vectors: Tensor) -> tuple[Tensor, float]:
    """Vectors (V, C) by their two principal components (V, 2), and the variance these explain."""
    centred = vectors - vectors.mean(dim=0)
    U, S, _ = torch.linalg.svd(centred, full_matrices=False)
    two = torch.zeros(len(vectors), 2)
    two[:, : len(S)] = (U * S)[:, :2]
    return two, ((S[:2] ** 2).sum() / (S**2).sum().clamp(min=1e-12)).item()


def render_page(found: Inspection) -> str:
    """The web page."""
    template = files(__package__).joinpath("inspection.html").read_text("utf-8")
    data = json.dumps(asdict(found), ensure_ascii=False).replace("<", "\\u003c")
    return template.replace("DATA", data, 1)


def _predict(p: Tensor, names: list[str], n: int) -> list[Prediction]:
    """The n likeliest of probabilities (V,)."""
    top = p.topk(min(n, len(p)))
    every = zip(top.indices.tolist(), _round(top.values), strict=True)
    return [Prediction(names[i], value) for i, value in every]


def _round(numbers: Tensor) -> list[float]:
    return [round(number, DIGITS) for number in numbers.tolist()]


def _shown(piece: bytes) -> str:
    """A token as text, with what cannot be seen made visible."""
    signs = {" ": "␣", "\n": "↵", "\t": "→"}
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
