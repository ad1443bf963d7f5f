"""A trained model in Python: `load("runs/tiny").generate("ROMEO:")`."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch

from .checkpoint import SUMS, Best, Checkpoint
from .checkpoint import load as load_checkpoint
from .devices import Precision, pick_device, pick_precision
from .generate import Sampling
from .models import Model
from .runs import find_run
from .tokenizers import Tokenizer
from .writing import Completions, Writing

Prompts = list[str] | tuple[str, ...]


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

    def complete(self, prompts: Sequence[str], how: Writing) -> Completions:
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


def _writing(options: Options, samples: int = 1) -> Writing:
    of_writing = {"max_new_tokens", "seed"}
    sampling = {k: v for k, v in options.items() if k not in of_writing | {"stop"}}
    stop = options.get("stop", ())
    return Writing(
        samples=samples,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=Sampling(**{"temperature": 0.8, **sampling}),  # type: ignore[arg-type]
        **{k: v for k, v in options.items() if k in of_writing},  # type: ignore[arg-type]
    )
