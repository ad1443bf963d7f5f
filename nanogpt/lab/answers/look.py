"""Answers for the views "Look inside" and "Time machine"."""

from ...data import to_int64
from ...reports.inspection import Inspection, inspect_text
from ...runs.checkpoint import Checkpoint
from ..worker import Check
from .question import Question, sample_text

SUGGESTED_TOKENS = 45
"""Largest number of tokens in the prompt that the page suggests."""


def suggest_prompt(question: Question, check: Check) -> dict[str, str]:
    """Return the beginning of the validation split, which the model has not seen in training."""
    texts = question.texts()
    ids = texts.val.tokens[: min(SUGGESTED_TOKENS, question.checkpoint().model.config.block_size)]
    return {"prompt": texts.tokenizer.decode(to_int64(ids).tolist())}


def inspect(question: Question, check: Check) -> Inspection:
    """Return what the model computes for a prompt."""
    return inspect_prompt(question.checkpoint(), question.prompt())


def complete(question: Question, check: Check) -> dict[str, str]:
    """Return a short completion of the prompt."""
    tokens, seed = min(question.number("tokens", 100), 500), question.number("seed", 1337)
    sample = sample_text(question.checkpoint(), question.prompt(), seed, tokens, check)
    return {"sample": sample}


def inspect_prompt(checkpoint: Checkpoint, prompt: str) -> Inspection:
    """Return what a model computes for a prompt."""
    return inspect_text(checkpoint.model, checkpoint.tokenizer, prompt, "")
