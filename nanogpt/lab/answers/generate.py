"""Answers for the view "Generate"."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...api import GenerationConfig, Trained
from ...errors import UserError
from ...generate import filter_logits
from ...reports.inspection import name_tokens
from ...runs.checkpoint import Checkpoint
from ...text.completion import encode_prompt
from ..worker import Check
from .question import Question

SHOWN = 24
"""Number of tokens in the list of the most probable next tokens."""
PIECE_SECONDS = 0.05
"""The text generated in this time is sent as one piece.

One piece for each token would slow down runs that train on the same machine.
"""


def read_sampling(question: Question, tokens: int) -> GenerationConfig:
    """Return the settings for text generation; `tokens` is the default number of new tokens.

    Raises UserError for an invalid value.
    """
    query, options = question.query, dict[str, Any]()
    for name in ("temperature", "top_p", "min_p"):
        if query.get(name):
            try:
                options[name] = float(query[name])
            except ValueError:
                raise UserError(f"{name} is {query[name]!r}: it must be a number") from None
    if query.get("top_k"):
        options["top_k"] = question.number("top_k", 0)
    seed, tokens = question.number("seed", 1337), question.number("tokens", tokens)
    return GenerationConfig(max_new_tokens=min(tokens, 2000), seed=seed, **options)


def start_sample(question: Question) -> Iterator[str]:
    """Return an iterator over the pieces of a completion, in order."""
    config = read_sampling(question, 500)
    completions = Trained(question.checkpoint()).complete(
        [question.query.get("prompt", "")], config
    )
    return (piece for _, piece in completions)


def join_pieces(pieces: Iterator[str]) -> str:
    """Return the next text of a completion: at least one piece, at most about PIECE_SECONDS of it.

    Returns "" if no text is left.
    """
    end, text = time.monotonic() + PIECE_SECONDS, ""
    for piece in pieces:
        text += piece
        if text and time.monotonic() >= end:
            break
    return text


def next_token(question: Question, check: Check) -> dict[str, Any]:
    """Return the most probable next tokens.

    Each token has two probabilities: before and after temperature and filters are applied.
    """
    checkpoint, config = question.checkpoint(), read_sampling(question, 1)
    logits = _logits(checkpoint, question.prompt())[-1]  # (V,)
    p = logits.softmax(-1)
    kept = filter_logits(logits[None], config)[0].softmax(-1)
    names = name_tokens(checkpoint.tokenizer)
    order = p.topk(min(SHOWN, len(p))).indices.tolist()
    rows = [{"token": names[i], "p": p[i].item(), "kept": kept[i].item()} for i in order]
    return {"tokens": rows, "n_kept": int((kept > 0).sum()), "vocab_size": len(p)}


@torch.no_grad()
def _logits(checkpoint: Checkpoint, text: str) -> Tensor:
    """Return the logits (T, V) after each of the last block_size tokens of a text."""
    ids = encode_prompt(checkpoint.tokenizer, text)[-checkpoint.model.config.block_size :]
    logits: Tensor = checkpoint.model(torch.tensor([ids]))[0].float()
    return logits
