"""Prompts in, text out: many at once, as whole characters, up to a stop string."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .errors import UserError
from .generate import Sampler, Sampling, generators
from .models import Model
from .tokenizers import Tokenizer


@dataclass(frozen=True)
class Writing:
    """How much to write, and how."""

    max_new_tokens: int = 500
    samples: int = 1
    """Continuations of each prompt."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these that comes."""
    seed: int = 1337
    logprobs: bool = False
    cuda_graph: bool = True
    """Capture a step once and replay it, on a CUDA device."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raise UserError, naming the field, where nothing can be written so."""
        for name in ("max_new_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name.replace('_', '-')} is {value}: it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")
        if "" in self.stop:
            raise UserError("a stop string is empty: leave it out")


@dataclass
class Text:
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


def begin(tokenizer: Tokenizer, prompt: str) -> list[int]:
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


class Completions:
    """Prompts that are continued, all at once, each as often as asked.

    Iterated, it writes: the number of each text that grew, and what it grew by. The texts come in
    the order of the prompts, the samples of one beside each other.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, prompts: Sequence[str], how: Writing
    ) -> None:
        """Raises UserError for a prompt that cannot be read, or a stop string that cannot come."""
        check_stop(tokenizer, how.stop)
        every = [prompt for prompt in prompts for _ in range(how.samples)]
        self._growing = [_Growing(Text(prompt), tokenizer, how.stop) for prompt in every]
        self.texts = [growing.text for growing in self._growing]
        tokens = [begin(tokenizer, prompt) for prompt in every]
        numbers = generators(how.seed, len(tokens))
        self._sampler = Sampler(model, tokens, how.sampling, numbers, how.logprobs, how.cuda_graph)
        self._tokens = how.max_new_tokens

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for tokens, logprobs in self._sampler.take(self._tokens):
            for i, growing in enumerate(self._growing):
                if not growing.text.stopped:
                    if logprobs:
                        growing.text.logprobs.append(logprobs[i])
                    if piece := growing.push(tokens[i]):
                        yield i, piece
            if all(text.stopped for text in self.texts):
                return
        for i, growing in enumerate(self._growing):
            if not growing.text.stopped and (piece := growing.end()):
                yield i, piece

    def finish(self) -> list[Text]:
        """All of it."""
        for _ in self:
            pass
        return self.texts


class _Growing:
    """A text that tokens are added to. What may be the beginning of a stop string is held back."""

    def __init__(self, text: Text, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
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
