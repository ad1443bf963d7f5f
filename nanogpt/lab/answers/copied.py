"""The answer for the view "Copied or invented?"."""

from dataclasses import asdict
from typing import Any

from ...data import to_int64
from ...errors import UserError
from ...reports.copying import Source, remove_inner
from ..library import MAX_COUNTED_TOKENS
from ..worker import Check
from .question import Question, sample_text

COPY_TOKENS = 600
"""Number of tokens in the generated text."""
BASELINE_TOKENS = 5000
"""Number of tokens of the validation split whose matches are measured for comparison."""


def find_copies(question: Question, check: Check) -> dict[str, Any]:
    """Find the longest matches of generated text in the training text."""
    checkpoint, texts = question.checkpoint(), question.texts()
    if len(texts.train.tokens) > MAX_COUNTED_TOKENS:
        raise UserError(
            "the training text is too long for a search here: choose a run with a shorter text"
        )
    source = texts.source()
    check()
    seed, prompt = question.number("seed", 1337), question.query.get("prompt", "")
    generated = sample_text(checkpoint, prompt, seed, COPY_TOKENS, check)
    held_out = texts.tokenizer.decode(to_int64(texts.val.tokens[:BASELINE_TOKENS]).tolist())
    matches = source.find_matches(generated)
    return {
        "text": generated,
        "matches": [
            {**asdict(match), "excerpt": _excerpt(source, match.source, match.length)}
            for match in remove_inner(matches)
        ],
        "lengths": [match.length for match in matches],
        "held_out_lengths": [match.length for match in source.find_matches(held_out)],
    }


def _excerpt(source: Source, start: int, length: int) -> list[str]:
    """Return the text before a match, the match, and the text after it."""
    end = start + length
    return [
        source.text[max(0, start - 80) : start],
        source.text[start:end],
        source.text[end : end + 80],
    ]
