"""The commands. Whatever needs torch is imported when a command is chosen."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from unicodedata import category

import tyro

from . import __version__
from .errors import Interrupted, Stopped, UserError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .presets import Preset

T = TypeVar("T")
Run = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")]


@dataclass(frozen=True)
class SampleArgs:
    """Write with a trained model."""

    run: Run = None
    """Directory of a run, or its name below runs/; without it, the newest."""
    prompt: str | None = None
    """Text to continue; without it, the start of a line."""
    prompt_file: Path | None = None
    """File with the text to continue, instead of --prompt."""
    max_new_tokens: int = 500
    """Tokens to write."""
    samples: int = 1
    """How many continuations to write."""
    temperature: float = 0.8
    """Below 1 safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 1337
    """The same seed writes the same text."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name.replace('_', '-')} is {value}: it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")


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
    """Another corpus, or the path of another text, than the run learned from."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of a sentence."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def train(args: list[str]) -> None:
    """train a model, from nothing to text"""
    from rich.console import Console

    from .checkpoint import load
    from .presets import PRESETS
    from .start import begun_with
    from .terminal import TerminalReporter, result_table
    from .train import go_on
    from .train import train as begin

    run, args = _resumed(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    if run and name:
        raise UserError(f"a run that goes on has its settings already: leave {name} out")
    others = ", ".join(f"{other} ({known.purpose})" for other, known in PRESETS.items())
    if run:
        default = begun_with(run)
        about = f"Go on with {run}, from its last checkpoint; its settings are the defaults below."
    else:
        name = name or _preset_for(args)
        default = _preset(name).config
        about = (
            f"Train a model. Without PRESET, the one that suits the machine, here {name}; its "
            f"values are the defaults below. Presets: {others}. --resume RUN goes on with a run."
        )
    config = _parse(default, args, "nanogpt train [PRESET | --resume RUN]", about)
    console = Console(highlight=False)
    with TerminalReporter(console) as reporter:
        result = go_on(run, config, reporter) if run else begin(config, reporter)
    console.print()
    console.print(result_table(result))
    console.print("\n[bold]It writes:[/]")
    best = load(result.run.out / "best", result.run.device)
    _write(best, SampleArgs(seed=config.seed))


def _resumed(args: list[str]) -> tuple[Path | None, list[str]]:
    """The run that --resume names, the newest where it names none; and the other arguments."""
    from .runs import find_run

    for i, arg in enumerate(args):
        flag, equals, run = arg.partition("=")
        if flag == "--resume":
            rest = args[i + 1 :]
            if not equals and rest and not rest[0].startswith("-"):
                run, *rest = rest
            return find_run(run or None, "last"), args[:i] + rest
    return None, args


def sample(args: list[str]) -> None:
    """write text with a trained model"""
    from .checkpoint import load
    from .devices import pick_device, use_threads
    from .runs import find_run

    options = _parse(SampleArgs(), args, "nanogpt sample")
    use_threads()
    best = load(find_run(options.run) / "best", pick_device(options.device))
    _write(best, options)


def evaluate(args: list[str]) -> None:
    """measure a trained model on a whole split"""
    from . import corpora
    from .checkpoint import load
    from .data import Split, cut
    from .devices import pick_device, use_threads
    from .evaluate import Ensemble
    from .evaluate import evaluate as measure
    from .runs import find_run
    from .start import text_of

    options = _parse(EvalArgs(), args, "nanogpt eval")
    use_threads()
    device = pick_device(options.device)
    runs = [find_run(run) for run in options.runs or (None,)]
    every = [load(run / "best", device) for run in runs]
    text = corpora.load(options.data) if options.data else text_of(runs[0])
    first = every[0]
    for run, one in zip(runs[1:], every[1:], strict=True):
        if not options.data and text_of(run) != text:
            raise UserError(f"{runs[0]} and {run} learned from two texts: name one with --data")
        if one.tokenizer.to_json() != first.tokenizer.to_json():
            raise UserError(f"{runs[0]} and {run} have two alphabets: measure each by itself")
        if one.model.config.block_size != first.model.config.block_size:
            raise UserError(f"{runs[0]} and {run} have two contexts: measure each by itself")
    name = options.split
    if name == "auto":
        name = "all" if options.data else "val"
    part = text if name == "all" else cut(text)[name]
    split = Split(part, first.tokenizer, device)
    split.require(1, name)
    model = first.model if len(every) == 1 else Ensemble([one.model for one in every])
    found = measure(model, split)
    if options.json:
        answer = {
            "runs": [str(run) for run in runs],
            "steps": [one.step for one in every],
            "split": name,
            "loss": found.loss,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }
        print(json.dumps(answer))
    else:
        which = " and ".join(f"{run}, step {c.step:,}" for run, c in zip(runs, every, strict=True))
        print(
            f"{which}: {name} loss {found.loss:.4f} nats per token, "
            f"{found.bits_per_byte:.4f} bits per byte, over {found.tokens:,} tokens"
        )


def presets(args: list[str]) -> None:
    """list the runs that train knows by name"""
    from rich.console import Console
    from rich.table import Table

    from .models import BigramConfig, ModernConfig
    from .presets import PRESETS

    if args:
        raise UserError(f"presets takes no arguments, and got {args[0]}: leave it out")
    table = Table("preset", "model", "steps", "batch", "for", box=None, header_style="bold")
    for name, preset in PRESETS.items():
        model, training = preset.config.model, preset.config.train
        shape = f"context {model.block_size}"
        if not isinstance(model, BigramConfig):
            shape = f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, " + shape
        if isinstance(model, ModernConfig):
            shape = "modern, " + shape
        table.add_row(name, shape, f"{training.steps:,}", str(training.batch_size), preset.purpose)
    Console().print(table)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "presets": presets,
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {f.__doc__}" for name, f in COMMANDS.items())
    return f"""usage: nanogpt COMMAND [OPTIONS]

A GPT that one person can read in one sitting, and train in minutes.

commands:
{commands}

nanogpt COMMAND --help tells what a command takes; nanogpt --version, which version this is.
`nanogpt train` alone trains on Tiny Shakespeare and ends by writing some."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    Status 0 done, 1 stopped by something that went wrong, 2 a mistake of the user's, each told in
    one line; 130 or 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no crash
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except (UserError, Stopped) as error:
        line = _harmless(str(error)).replace("\n", "\\n")  # a name may have one in it
        print(f"nanogpt: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except (RuntimeError, MemoryError) as error:
        from .devices import memory_asked_for

        asked = memory_asked_for(error)
        if asked is None:
            raise
        print(f"nanogpt: {TOO_LARGE.format(asked=asked)}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as interruption:
        print(f"\nnanogpt: {interruption}", file=sys.stderr)
        sys.exit(interruption.status)
    except KeyboardInterrupt:
        print("\nnanogpt: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


TOO_LARGE = "out of memory: {asked} more were asked for; a smaller model, text or batch needs less"


def _harmless(text: str) -> str:
    """Text with the signs that steer a terminal written out, but for line breaks and tabs."""
    return "".join(
        c if category(c) != "Cc" or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text
    )


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
    elif args[0] == "--version":
        print(f"nanogpt {__version__}")
    elif args[0] in COMMANDS:
        COMMANDS[args[0]](args[1:])
    else:
        raise UserError(
            f"there is no command {args[0]!r}: "
            + (_nearest(args[0], COMMANDS) or f"use one of {', '.join(COMMANDS)}")
        )


def _nearest(word: str, known: Sequence[str] | dict[str, T]) -> str:
    close = get_close_matches(word, known)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _preset(name: str) -> "Preset":
    from .presets import PRESETS

    if name not in PRESETS:
        nearest, known = _nearest(name, PRESETS), f"he presets are {', '.join(PRESETS)}"
        advice = f"{nearest} T{known}" if nearest else f"t{known}"
        raise UserError(f"there is no preset {name!r}: {advice}")
    return PRESETS[name]


def _preset_for(args: list[str]) -> str:
    """The preset that suits the device that args ask for."""
    from .devices import pick_device
    from .presets import default_preset

    asked = re.search(r"--device[= ](\S+)", " ".join(args))
    return default_preset(pick_device(asked[1] if asked else "auto").type)


def _parse(default: T, args: Sequence[str], prog: str, description: str | None = None) -> T:
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


def _write(checkpoint: "Checkpoint", options: SampleArgs) -> None:
    """Print continuations of the prompt, each token as it is made."""
    import torch

    from .generate import check_sampling, generate

    check_sampling(options.temperature, options.top_k, options.top_p)
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    prompt = _prompt(options)
    # A text begins where a line does; an alphabet without line breaks begins with its first sign.
    start = prompt or ("\n" if "\n" in tokenizer.alphabet else tokenizer.alphabet[0])
    device = next(model.parameters()).device
    tokens = torch.tensor([tokenizer.encode(start)], device=device)
    generator = torch.Generator().manual_seed(options.seed)
    for number in range(1, options.samples + 1):
        if options.samples > 1:
            print(f"--- {number} of {options.samples} ---")
        print(prompt, end="", flush=True)
        for token in generate(
            model,
            tokens,
            options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generator=generator,
        ):
            text = tokenizer.decode(token.tolist())
            print(_harmless(text) if sys.stdout.isatty() else text, end="", flush=True)
        print()


def _prompt(options: SampleArgs) -> str:
    from . import corpora

    if options.prompt_file is not None:
        return corpora.read_text(options.prompt_file)
    return options.prompt or ""
