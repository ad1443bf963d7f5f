"""Use a trained model from Python: `load("runs/tiny").generate("ROMEO:")`."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch

from .errors import UserError, suggest_nearest
from .fast import generation as fast
from .generate import Sampling, generate
from .models import BigramConfig, Model
from .runs.checkpoint import Best, Checkpoint, load_checkpoint
from .runs.directory import find_run
from .runs.reading import SUMS
from .system.devices import Precision, pick_device, pick_precision
from .system.files import path_exists
from .system.memory import format_count, require_memory
from .text.completion import Completion, CompletionDecoder, check_stop, encode_prompt
from .text.tokenizers import Tokenizer

Prompts = list[str] | tuple[str, ...]

GENERATOR_BYTES = 5000
"""Bytes of a random generator of torch; each text has its own generator."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Sampling):
    """Settings of text generation, shared by the command line and the Python API."""

    max_new_tokens: int = 500
    """Number of tokens to generate for each completion; a stop string can end it earlier."""
    samples: int = 1
    """Number of completions of each prompt."""
    stop: Sequence[str] = ()
    """Strings that end a completion; the completion does not contain them."""
    seed: int = 1337
    """Seed of the random numbers; the same seed and settings generate the same text."""
    temperature: float = 0.8
    """Divides the logits. A value below 1 makes the text more predictable; a value above 1 makes it
    more varied; 0 always selects the most likely token."""
    cuda_graph: bool = True
    """Generate faster on a CUDA device: capture a decoding step as a CUDA graph and replay it."""
    compile: bool = False
    """Generate even faster on a CUDA device, with kernels that are compiled at their first use.
    This takes about a second, so use it for many thousands of tokens. Needs cuda_graph."""

    def __post_init__(self) -> None:
        """Raise UserError if a field has an invalid value; the message names the field."""
        super().__post_init__()
        for name in ("max_new_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")
        if "" in self.stop:
            raise UserError("stop has an empty string: leave this string out")


class GenerationOptions(TypedDict, total=False):
    """The fields of GenerationConfig except `samples`, as keyword arguments.

    A test compares these fields with those of GenerationConfig.
    """

    repetition_penalty: float
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    max_new_tokens: int
    stop: Sequence[str]
    seed: int
    cuda_graph: bool
    compile: bool


def load(
    run: Path | str | None = None, device: str = "auto", precision: Precision = "auto"
) -> "Trained":
    """Load the best model of the run directory `run`; None means the newest run.

    `run` can also be the name of a run in runs/, or a checkpoint directory such as runs/tiny/last.
    The model generates text on `device`, with weights of type `precision`. The precision "auto"
    means bfloat16 on CUDA GPUs that support it, otherwise float32. Raises UserError if the model
    cannot be loaded.
    """
    directory = Path(run) if run else None
    if directory is None or not path_exists(directory / SUMS):
        directory = find_run(None if run is None else str(run)) / "best"
    found_device = pick_device(device)
    if precision == "auto" and found_device.type != "cuda":
        precision = "float32"
    checkpoint = load_checkpoint(directory, found_device)
    return Trained(checkpoint, pick_precision(precision, found_device))


def count_text_bytes(model: Model) -> int:
    """Return a lower bound on the host memory, in bytes, that generating one text needs."""
    config, weight = model.config, next(model.parameters())
    if weight.device.type != "cpu":
        return GENERATOR_BYTES
    logits = 3 * 4 * config.vocab_size  # logits, probabilities and cumulative probabilities
    if isinstance(config, BigramConfig):
        return GENERATOR_BYTES + logits
    values = 2 * config.n_layer * config.n_embd * config.block_size  # keys and values
    return GENERATOR_BYTES + logits + values * weight.element_size()


class Completions:
    """Generates the completions of several prompts together.

    Iteration yields (index, piece): the index of a completion, and the next piece of its text. The
    completions are in the order of the prompts; all completions of one prompt are adjacent.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        config: GenerationConfig,
        logprobs: bool = False,
    ) -> None:
        """Encode the prompts.

        Raises UserError for a prompt or stop string that cannot be encoded, or if there is too
        little memory.
        """
        check_stop(tokenizer, config.stop)
        count = len(prompts) * config.samples
        require_memory(
            count * count_text_bytes(model),
            f"generating {format_count(count)} samples at once",
            "generate fewer at once, each time with another seed",
        )
        self.model, self.config, self.logprobs = model, config, logprobs
        prompts = [prompt for prompt in prompts for _ in range(config.samples)]
        self._tokens = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        self._decoders = [
            CompletionDecoder(Completion(prompt), tokenizer, config.stop, tokens)
            for prompt, tokens in zip(prompts, self._tokens, strict=True)
        ]
        self.texts = [decoder.completion for decoder in self._decoders]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        config, device = self.config, next(self.model.parameters()).device
        generate_steps = generate
        if device.type == "cuda" and config.cuda_graph:
            generate_steps = partial(fast.generate, compile=config.compile)
        steps = generate_steps(
            self.model, self._tokens, config.max_new_tokens, config, config.seed, self.logprobs
        )
        for step in steps:
            for i, decoder in enumerate(self._decoders):
                if not decoder.completion.stopped:
                    if step.logprobs is not None:
                        decoder.completion.logprobs.append(step.logprobs[i])
                    if piece := decoder.push(step.tokens[i]):
                        yield i, piece
            if all(text.stopped for text in self.texts):
                return
        for i, decoder in enumerate(self._decoders):
            if not decoder.completion.stopped and (piece := decoder.end()):
                yield i, piece

    def finish(self) -> list[Completion]:
        """Generate all completions and return them."""
        for _ in self:
            pass
        return self.texts


class Trained:
    """A trained model and its tokenizer, ready to generate text."""

    def __init__(self, checkpoint: Checkpoint, precision: torch.dtype = torch.float32) -> None:
        self.model: Model = checkpoint.model
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self.step: int = checkpoint.step
        self.best: Best | None = checkpoint.best
        self.precision = precision

    @cached_property
    def _generator(self) -> Model:
        """The model, with its weights converted to `precision`."""
        if self.precision == torch.float32:
            return self.model
        return deepcopy(self.model).to(self.precision)

    def complete(
        self, prompts: Sequence[str], config: GenerationConfig, logprobs: bool = False
    ) -> Completions:
        """Return Completions; iterating over them or calling finish() generates the texts."""
        return Completions(self._generator, self.tokenizer, prompts, config, logprobs)

    @overload
    def generate(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> str: ...

    @overload
    def generate(
        self, prompt: str | Prompts = "", *, samples: int, **options: Unpack[GenerationOptions]
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Prompts, *, samples: int = 1, **options: Unpack[GenerationOptions]
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Prompts = "",
        *,
        samples: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str | list[str]:
        """Return the completion of a prompt, or a list of completions for a list of prompts.

        If `samples` is given, the result is always a list. With an empty prompt, the text starts at
        the beginning of a line. `options` are the fields of GenerationConfig except `samples`.
        Raises UserError for an invalid option or prompt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        config = make_config(options, 1 if samples is None else samples)
        if not prompts:
            return []
        completions = self.complete(prompts, config).finish()
        is_single = isinstance(prompt, str) and samples is None
        return completions[0].text if is_single else [each.text for each in completions]

    def stream(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Generate the same text as generate(), and yield it piece by piece."""
        return (piece for _, piece in self.complete([prompt], make_config(options)))


def make_config(options: GenerationOptions, samples: int = 1) -> GenerationConfig:
    """Make a GenerationConfig from keyword arguments. Raises UserError for an invalid option."""
    known = GenerationOptions.__annotations__
    if unknown := sorted(options.keys() - known.keys()):
        suggestion = suggest_nearest(unknown[0], known)
        advice = f"{suggestion} The" if suggestion else "the"
        raise UserError(f"there is no option {unknown[0]}: {advice} options are {', '.join(known)}")
    if isinstance(stop := options.get("stop"), str):
        options["stop"] = (stop,)
    return GenerationConfig(samples=samples, **options)
