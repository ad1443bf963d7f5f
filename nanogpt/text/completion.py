"""Encode prompts and decode completions, which end before a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError
from .tokenizers import Tokenizer


@dataclass
class Completion:
    """One completion of a prompt; it grows during generation."""

    prompt: str
    text: str = ""
    """The generated text, without the prompt and the stop string."""
    tokens: list[int] = field(default_factory=list)
    """The generated tokens, including the tokens of a stop string."""
    logprobs: list[float] = field(default_factory=list)
    """The log-probability of each generated token in nats; empty unless requested."""
    stopped: bool = False
    """Whether a stop string occurred."""


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encode a prompt as at least one token.

    The model needs a token to start from, so an empty prompt becomes a line break. The completion
    then starts at the beginning of a line. If the tokenizer cannot encode a line break, or if the
    encoded prompt is empty, the prompt becomes token 0.
    """
    if prompt:
        return tokenizer.encode(prompt) or [0]
    try:
        return tokenizer.encode("\n") or [0]
    except UserError:
        return [0]


def check_stop(tokenizer: Tokenizer, stop: Sequence[str]) -> None:
    """Raise UserError if the tokenizer cannot encode a stop string, which then never occurs."""
    for text in stop:
        try:
            tokenizer.encode(text)
        except UserError as error:
            raise UserError(f"the stop string {text!r} can never occur: {error}") from None


class CompletionDecoder:
    """Decodes the tokens of a completion, one at a time, until a stop string occurs.

    If text may be the beginning of a stop string, the decoder does not return this text until later
    tokens show that the text is not part of a stop string.
    """

    def __init__(
        self,
        completion: Completion,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        prompt: Sequence[int] = (),
    ) -> None:
        """`prompt` contains the tokens before the completion, because they may affect its text."""
        self.completion, self._stop = completion, stop
        self._stream = tokenizer.decode_stream(prompt)
        self._held_back = ""

    def push(self, token: int) -> str:
        """Add a token, and return the text that this token adds to the completion."""
        self.completion.tokens.append(token)
        return self._append(self._stream.push(token))

    def end(self) -> str:
        """End the completion and return the rest of its text."""
        grown = self._append(self._stream.end())
        if not self.completion.stopped:
            grown += self._held_back
            self.completion.text += self._held_back
        return grown

    def _append(self, text: str) -> str:
        """Add text to the completion, and return the part that was added.

        A stop string and the text after it are dropped. If the end of the text may be the beginning
        of a stop string, this end is kept for the next call.
        """
        text = self._held_back + text
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.completion.stopped = True
            visible, self._held_back = text[: min(starts)], ""
        else:
            length = max((_count_stop_prefix(text, stop) for stop in self._stop), default=0)
            visible, self._held_back = text[: len(text) - length], text[len(text) - length :]
        self.completion.text += visible
        return visible


def _count_stop_prefix(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
