"""A trained model in Python: `load("runs/tiny").generate("ROMEO:")`."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch

from .errors import UserError
from .generate import Sampler, Sampling, generators
from .models import Model
from .runs.checkpoint import Best, Checkpoint, load_checkpoint
from .runs.directory import find_run
from .runs.reading import SUMS
from .system.devices import Precision, pick_device, pick_precision
from .text.completion import Completion, CompletionDecoder, check_stop, encode_prompt
from .text.tokenizers import Tokenizer

Prompts = list[str] | tuple[str, ...]


@dataclass(frozen=True)
class GenerationConfig:
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


class Completions:
    """Prompts that are continued, all at once, each as often as asked.

    Iterated, it writes: the number of each text that grew, and what it grew by. The texts come in
    the order of the prompts, the samples of one beside each other.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, prompts: Sequence[str], how: GenerationConfig
    ) -> None:
        """Raises UserError for a prompt that cannot be read, or a stop string that cannot come."""
        check_stop(tokenizer, how.stop)
        every = [prompt for prompt in prompts for _ in range(how.samples)]
        self._growing = [
            CompletionDecoder(Completion(prompt), tokenizer, how.stop) for prompt in every
        ]
        self.texts = [growing.text for growing in self._growing]
        tokens = [encode_prompt(tokenizer, prompt) for prompt in every]
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

    def finish(self) -> list[Completion]:
        """All of it."""
        for _ in self:
            pass
        return self.texts


class Options(TypedDict, total=False):
    """How to write: the fields of Writing and of Sampling, one beside the other."""

    max_new_tokens: int
    stop: Sequence[str]
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float


def load(
    run: Path | str | None = None, device: str = "auto", precision: Precision = "auto"
) -> "Trained":
    """The best model of a run: of a directory, or a name below runs/; without it, of the newest.

    It writes on this device at this precision; auto is bfloat16 on a GPU that has it, and float32
    elsewhere. The directory of a checkpoint, such as runs/tiny/last, will do, too. UserError.
    """
    found = Path(run) if run is not None else None
    if found is None or not (found / SUMS).exists():
        found = find_run(None if run is None else str(run)) / "best"
    where = pick_device(device)
    if precision == "auto" and where.type != "cuda":
        precision = "float32"
    return Trained(load_checkpoint(found, where), pick_precision(precision, where))


class Trained:
    """A model and its tokenizer, ready to write."""

    def __init__(self, checkpoint: Checkpoint, precision: torch.dtype = torch.float32) -> None:
        self.model: Model = checkpoint.model
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self.step: int = checkpoint.step
        self.best: Best | None = checkpoint.best
        self.precision = precision

    @cached_property
    def _writer(self) -> Model:
        """The model with its weights at the precision to write with."""
        if self.precision == torch.float32:
            return self.model
        return deepcopy(self.model).to(self.precision)

    def complete(self, prompts: Sequence[str], how: GenerationConfig) -> Completions:
        """Continue prompts: to be iterated, or finished; with tokens, and logprobs if asked for."""
        return Completions(self._writer, self.tokenizer, prompts, how)

    @overload
    def generate(self, prompt: str = "", **how: Unpack[Options]) -> str: ...

    @overload
    def generate(
        self, prompt: str | Prompts = "", *, samples: int, **how: Unpack[Options]
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Prompts, *, samples: int = 1, **how: Unpack[Options]
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Prompts = "",
        *,
        samples: int | None = None,
        **how: Unpack[Options],
    ) -> str | list[str]:
        """What follows a prompt. Of several prompts, or with samples, a list, all written at once.

        Without a prompt it begins at the start of a line. Raises UserError.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            return []
        texts = self.complete(prompts, _writing(how, samples or 1)).finish()
        one = isinstance(prompt, str) and samples is None
        return texts[0].text if one else [text.text for text in texts]

    def stream(self, prompt: str = "", **how: Unpack[Options]) -> Iterator[str]:
        """The same, as it is written."""
        return (piece for _, piece in self.complete([prompt], _writing(how)))


def _writing(options: Options, samples: int = 1) -> GenerationConfig:
    of_writing = {"max_new_tokens", "seed"}
    sampling = {k: v for k, v in options.items() if k not in of_writing | {"stop"}}
    stop = options.get("stop", ())
    return GenerationConfig(
        samples=samples,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=Sampling(**{"temperature": 0.8, **sampling}),  # type: ignore[arg-type]
        **{k: v for k, v in options.items() if k in of_writing},  # type: ignore[arg-type]
    )
