"""The answers to the questions that the page sends; each module has one kind of answer."""

from . import apart, compare, copied, counting, generate, look, train
from .question import Answer

QUESTIONS: dict[str, Answer] = {
    "prompt": look.suggest_prompt,
    "inspect": look.inspect,
    "complete": look.complete,
    "baselines": train.baselines,
    "next": generate.next_token,
    "ablate": apart.ablate,
    "counting": counting.count,
    "copied": copied.find_copies,
    "compare": compare.compare,
}
"""The questions that the worker answers, by the names of their routes."""
