"""Code that several answers share: the question, and small computations with a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...api import GenerationConfig, Trained
from ...errors import UserError
from ...runs.checkpoint import Checkpoint
from ..library import Library, Texts
from ..worker import Check

SAMPLE_TOKENS = 160
"""Number of tokens in the samples of the views "Take it apart" and "Compare"."""


class Question:
    """The run, the step and the other parameters of a request."""

    def __init__(self, library: Library, query: dict[str, str]) -> None:
        self.library, self.query = library, query
        self.run = query.get("run", "")

    def checkpoint(self, suffix: str = "") -> Checkpoint:
        """Load the model that the request names with `run` and `step` (or `run2` and `step2`)."""
        step = self.query.get(f"step{suffix}", "best")
        name = self.query.get(f"run{suffix}", "")
        return self.library.load(name, None if step == "best" else self.number(f"step{suffix}", 0))

    def texts(self) -> Texts:
        """Return the tokens and the n-gram models of the run's text."""
        return self.library.texts(self.run)

    def number(self, name: str, default: int) -> int:
        """Return a parameter of the request as an integer, or `default` if it is missing.

        Raises UserError if the value is not an integer.
        """
        try:
            return int(self.query.get(name, default))
        except ValueError:
            raise UserError(f"{name} is {self.query[name]!r}: it must be a whole number") from None

    def prompt(self) -> str:
        """Return the prompt, or a line break if the prompt is empty."""
        return self.query.get("prompt", "") or "\n"

    def version(self) -> tuple[float, ...]:
        """Return values that change when the runs in the request are trained further.

        They are part of the cache key, so a cached answer for older weights is not used again.
        """
        names = [self.query[name] for name in ("run", "run2") if name in self.query]
        return tuple((self.library.find(name) / "metrics.jsonl").stat().st_mtime for name in names)


Answer = Callable[[Question, Check], object]
"""Computes a dataclass or a JSON value."""


def sample_text(checkpoint: Checkpoint, prompt: str, seed: int, tokens: int, check: Check) -> str:
    """Return a completion of the prompt."""
    config = GenerationConfig(max_new_tokens=tokens, seed=seed)
    pieces = []
    for _, piece in Trained(checkpoint).complete([prompt], config):
        check()
        pieces.append(piece)
    return "".join(pieces)


@torch.no_grad()
def score_tokens(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Return -ln p (N,) of each token of `ids` (N + 1,) except the first.

    The context of a token begins at the start of its window of block_size tokens.
    """
    T, losses = checkpoint.model.config.block_size, []
    for start in range(0, len(ids) - 1, T):
        window = ids[start : start + T + 1]
        logits = checkpoint.model(window[None, :-1])[0].float()
        losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
    return torch.cat(losses)


def round_all(values: Any) -> list[float]:
    """Return the values (N,), rounded to 4 decimal places."""
    return [round(float(value), 4) for value in values]
