"""The answer for the view "Against counting"."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import to_int64
from ...errors import UserError
from ...reports.inspection import name_tokens
from ..worker import Check
from .question import Question, round_all, score_tokens

SHOWN = 12
"""Number of entries in each list: the next tokens, and the largest wins and defeats."""


def count(question: Question, check: Check) -> dict[str, Any]:
    """Compare the model with bigram and n-gram models on a passage of the validation split."""
    checkpoint, texts = question.checkpoint(), question.texts()
    counts = texts.count()
    if counts is None:
        raise UserError(
            "the text is too long to count its n-grams here: use the command nanogpt data"
        )
    bigrams, smoothed = counts
    ids, V = to_int64(texts.part.tokens), texts.tokenizer.vocab_size
    model = score_tokens(checkpoint, ids).numpy()  # (N,)
    check()
    ngram = -np.log(smoothed.probabilities(ids.numpy())[1:])  # (N,)
    table = np.array([bigrams.next_probabilities([i]) for i in range(V)]) if V <= 1024 else None
    T = checkpoint.model.config.block_size
    length = min(T, 256)
    start = min(max(0, question.number("start", 0)), len(ids) - 2)
    passage = slice(start, start + length)
    names, shown = name_tokens(checkpoint.tokenizer), ids[start : start + length + 1].tolist()
    position = min(question.number("position", length - 1), len(shown) - 2)
    end = start + position + 1  # the end of the context, exclusive
    context = ids[(end - 1) // T * T : end]  # the same window as in score_tokens()
    with torch.no_grad():
        rows = {"model": checkpoint.model(context[None])[0, -1].float().softmax(-1).numpy()}
    if table is not None:
        rows["bigram"] = table[int(context[-1])]
    before = ids[max(0, end + 1 - smoothed.n) : end].tolist()
    rows[f"{smoothed.n}-grams"] = smoothed.next_probabilities(before)
    gains = ngram - model
    order = np.argsort(gains)
    return {
        "tokens": [names[i] for i in shown],
        "start": start,
        "n": smoothed.n,
        "count": len(model),
        "model": round_all(model[passage]),
        "ngram": round_all(ngram[passage]),
        "bigram": None
        if table is None
        else round_all(-np.log(table[ids[:-1].numpy(), ids[1:].numpy()])[passage]),
        "losses": {"model": float(model.mean()), "ngram": float(ngram.mean())},
        "next": {
            name: [{"token": names[i], "p": float(p[i])} for i in np.argsort(-p)[:SHOWN].tolist()]
            for name, p in rows.items()
        },
        "wins": [_describe(i, ids, names, gains) for i in order[::-1][:SHOWN].tolist()],
        "defeats": [_describe(i, ids, names, gains) for i in order[:SHOWN].tolist()],
    }


def _describe(i: int, ids: Tensor, names: list[str], gains: Any) -> dict[str, Any]:
    before = "".join(names[t] for t in ids[max(0, i - 20) : i + 1].tolist())
    return {"start": i, "before": before, "token": names[int(ids[i + 1])], "nats": float(gains[i])}
