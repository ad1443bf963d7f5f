"""The answer for the view "Compare"."""

from typing import Any

from ...data import to_int64
from ...errors import UserError
from ...reports.inspection import name_tokens
from ..worker import Check
from .question import SAMPLE_TOKENS, Question, round_all, sample_text, score_tokens


def compare(question: Question, check: Check) -> dict[str, Any]:
    """Compare two models: their losses on the same passage, and samples with the same seed."""
    one, two, texts = question.checkpoint(), question.checkpoint("2"), question.texts()
    if one.tokenizer.to_json() != two.tokenizer.to_json():
        raise UserError(
            "the two runs have different tokenizers: choose runs with the same tokenizer"
        )
    ids = to_int64(texts.part.tokens)
    losses = [score_tokens(checkpoint, ids) for checkpoint in (one, two)]
    check()
    start = min(max(0, question.number("start", 0)), len(ids) - 2)
    passage = slice(start, start + 600)
    names, seed = name_tokens(one.tokenizer), question.number("seed", 1337)
    return {
        "tokens": [names[i] for i in ids[start : start + 601].tolist()],
        "start": start,
        "count": len(ids) - 1,
        "losses": [round_all(loss[passage]) for loss in losses],
        "means": [loss.mean().item() for loss in losses],
        "samples": [
            sample_text(checkpoint, question.prompt(), seed, SAMPLE_TOKENS, check)
            for checkpoint in (one, two)
        ],
    }
