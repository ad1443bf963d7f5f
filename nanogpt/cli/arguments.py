"""What the commands take, and how it is read. The one place that knows the library for it."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from ..errors import UserError

T = TypeVar("T")
Run = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class SampleArgs:
    """Write with a trained model."""

    run: Run = None
    """Directory of a run, or its name below runs/; without it, the newest."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue; several times for several. Without it, the start of a line."""
    prompt_file: Path | None = None
    """File with a text to continue."""
    interactive: Flag = False
    """Ask for one prompt after the other; Ctrl-C ends a text, Ctrl-D all."""
    max_new_tokens: int = 500
    """Tokens to write."""
    samples: int = 1
    """How many continuations to write of each prompt."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End a text before this string; several times for several."""
    temperature: float = 0.8
    """Below 1 safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens with at least this part of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1: what the text has already becomes less likely."""
    seed: int = 1337
    """The same seed writes the same text."""
    json: Flag = False
    """A JSON object a line for each text: prompt, text, tokens, logprobs, stopped."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU that has it, float32 elsewhere."""
    cuda_graph: bool = True
    """Capture a step once and replay it, on a CUDA device."""


@dataclass(frozen=True)
class TokenizeArgs:
    """Show how a tokenizer cuts a text."""

    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT]")] = None
    """The text; without it, standard input."""
    tokenizer: str = "char"
    """char, byte, bpe, bpe:N, the path of a tokenizer.json, or a run."""
    data: str = "tinyshakespeare"
    """What char and bpe learn from: a corpus, or the path of a text."""
    json: Flag = False
    """Print one JSON object instead."""


@dataclass(frozen=True)
class DataArgs:
    """Show what a text is like, and what is to be beaten on it: the entropy of its n-grams."""

    data: Annotated[str, tyro.conf.Positional] = "tinyshakespeare"
    """What train takes as --data."""
    column: str = "text"
    """Where the texts of .jsonl and .parquet are."""
    separator: str = "\n\n"
    """What stands between documents."""
    save: Path | None = None
    """Write the text to this new file, in UTF-8."""
    json: Flag = False
    """Print one JSON object instead."""


@dataclass(frozen=True)
class InspectArgs:
    """Show what a model does with a text, on a web page that needs no network.

    Where every head looks, what is expected at every position, what each layer would say, and where
    the tokens lie.
    """

    run: Run = None
    """Directory of a run, or its name below runs/; without it, the newest."""
    prompt: str = ""
    """The text; without it, one that the model writes."""
    out: Path | None = None
    """The page; without it, inspect.html in the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class EvalArgs:
    """Measure a trained model on a whole split of a text.

    Several are measured as one: the mean of their probabilities.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Directories of runs, or their names below runs/; without one, the newest."""
    split: Literal["auto", "val", "train", "all"] = "auto"
    """val is the last 10% of the text, train the first 90%; auto is val, and with --data all."""
    data: str | None = None
    """Another text than the run learned from: what train takes as --data."""
    column: str = "text"
    """Where the texts of .jsonl and .parquet are."""
    separator: str = "\n\n"
    """What stands between documents."""
    json: Flag = False
    """Print one JSON object instead of a sentence."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class LadderArgs:
    """Climb from counting characters to a GPT, and see what each step buys.

    What is done already is not done again. Writes ladder.json, ladder.md and ladder.svg.
    """

    data: str = "tinyshakespeare"
    """What train takes as --data."""
    out: Path = Path("runs/ladder")
    """Directory of the study, with one for each rung in it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; on a GPU the rungs and the batches are larger."""
    steps: int | None = None
    """Optimizer steps of every rung; without it 1,000."""
    seed: int = 1337
    """Decides the initial weights, the order of the batches, dropout and the samples."""
    json: Flag = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ScalingArgs:
    """Train models of many sizes on many amounts of text, and fit a law to their losses.

    L(N, D) = E + A / N^α + B / D^β, for N parameters and D characters. Meant for a GPU. What is
    done already is not done again. Writes scaling.json, scaling.md and three pictures.
    """

    out: Path = Path("runs/scaling")
    """Directory of the study, with one for each run in it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; cuda is all the GPUs that there are."""
    at_a_time: int = 3
    """Runs at a time on each GPU."""
    sizes: int = 7
    """How many sizes, from the smallest: 7 end at 28 million parameters."""
    steps: int = 2500
    """Optimizer steps of each run, at most; it ends when it gets no better."""
    seed: int = 1337
    """Decides the initial weights, the order of the batches and dropout."""
    json: Flag = False
    """Print one JSON object instead of tables."""


def parse_arguments(
    default: T, args: Sequence[str], prog: str, description: str | None = None
) -> T:
    """Default with args applied. What args have wrong becomes a UserError of one line."""
    config = (tyro.conf.AvoidSubcommands,)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                type(default),
                args=args,
                prog=prog,
                description=description,
                default=default,
                config=config,
            )
    except SystemExit as exit:
        if not exit.code:
            raise
    raise UserError(_flat(box.getvalue(), f"see {prog.partition(' [')[0]} --help"))


def _flat(box: str, otherwise: str) -> str:
    """A message that tyro drew in a box, as one line: what was wrong, and what to do."""
    text = " ".join(line.strip("╭│╰╮╯ ") for line in box.splitlines())
    _, wrong, *more = re.split(r"[─-]{5,}", text)  # a title, the message, suggestions
    wrong = wrong.strip().rstrip(".")
    if ours := re.match(r"Error parsing \w+: ", wrong):  # a ValueError of a configuration
        return wrong[ours.end() :]
    if meant := [flag for s in more if "meant" in s for flag in re.findall(r"--[\w.-]+", s)]:
        otherwise = f"did you mean {' or '.join(dict.fromkeys(meant))}?"
    return f"{wrong}; {otherwise}"
