"""The answer for the view "Take it apart"."""

from dataclasses import dataclass

from ...evaluate import evaluate
from ...reports.ablation import list_parts, switched_off
from ...reports.inspection import Inspection
from ..worker import Check
from .look import inspect_prompt
from .question import SAMPLE_TOKENS, Question, sample_text


@dataclass(frozen=True)
class Ablation:
    """Measurements of a model with some parts switched off."""

    parts: list[str]
    """The names of all parts that can be switched off."""
    loss: float
    """Nats per token on the first `tokens` tokens of the validation split."""
    tokens: int
    all_tokens: int
    """Tokens of the whole validation split."""
    sample: str
    inspection: Inspection | None
    """What the model computes for the prompt; None if the page asks only for the loss."""


def ablate(question: Question, check: Check) -> Ablation:
    """Measure the model with some parts switched off.

    The parameter `off` of the request lists the names of these parts, separated by commas.
    """
    checkpoint, texts = question.checkpoint(), question.texts()
    off = [part for part in question.query.get("off", "").split(",") if part]
    only_loss, inspection, sample = "only_loss" in question.query, None, ""
    with switched_off(checkpoint.model, off):
        evaluation = evaluate(checkpoint.model, texts.part)
        check()
        if not only_loss:
            seed = question.number("seed", 1337)
            sample = sample_text(checkpoint, question.prompt(), seed, SAMPLE_TOKENS, check)
            inspection = inspect_prompt(checkpoint, question.prompt())
    return Ablation(
        list_parts(checkpoint.model),
        evaluation.loss,
        evaluation.tokens,
        len(texts.val.tokens) - 1,
        sample,
        inspection,
    )
