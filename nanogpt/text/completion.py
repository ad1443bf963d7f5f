"""Prompts in, text out: many at once, as whole characters, up to a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError
from .tokenizers import Tokenizer


@dataclass
class Completion:
    """One continuation of a prompt, as it grows."""

    prompt: str
    text: str = ""
    """What was written, without the prompt."""
    tokens: list[int] = field(default_factory=list)
    """What was drawn: with the stop string, if it came."""
    logprobs: list[float] = field(default_factory=list)
    """ln p of each of these tokens, if asked for."""
    stopped: bool = False
    """Whether a stop string came."""


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt. A text begins where a line does, so an empty one is a line break.

    Where the tokenizer has none, it is its first token.
    """
    if prompt:
        return tokenizer.encode(prompt) or [0]
    try:
        return tokenizer.encode("\n") or [0]
    except UserError:
        return [0]


def check_stop(tokenizer: Tokenizer, stop: Sequence[str]) -> None:
    """Raise UserError for a stop string that can never come."""
    for text in stop:
        try:
            tokenizer.encode(text)
        except UserError as error:
            raise UserError(f"the stop string {text!r} can never come: {error}") from None


class CompletionDecoder:
    """A text that tokens are added to. What may be the beginning of a stop string is held back."""

    def __init__(self, text: Completion, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.text, self._stop = text, stop
        self._stream = tokenizer.stream()
        self._held = ""

    def push(self, token: int) -> str:
        """What the text grows by."""
        self.text.tokens.append(token)
        return self._add(self._held + self._stream.push(token))

    def end(self) -> str:
        """What was still held back."""
        grown = self._add(self._held + self._stream.end())
        if not self.text.stopped:
            self.text.text += self._held
            grown += self._held
        return grown

    def _add(self, new: str) -> str:
        found = [place for stop in self._stop if (place := new.find(stop)) >= 0]
        if found:
            self.text.stopped = True
            new, self._held = new[: min(found)], ""
        else:
            held = max((_overlap(new, stop) for stop in self._stop), default=0)
            new, self._held = new[: len(new) - held], new[len(new) - held :]
        self.text.text += new
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
