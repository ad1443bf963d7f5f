"""The commands. Whatever needs torch is imported when one is chosen."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from .arguments import (
    DataArgs,
    EvalArgs,
    SampleArgs,
    TokenizeArgs,
    parse,
)
from .errors import UserError
from .insight import explain, inspect
from .sampling import sample, write, writing_of
from .study import study


def train(args: list[str]) -> None:
    """train a model, from nothing to text"""
    from rich.console import Console

    from .presets import PRESETS, preset_for, preset_named
    from .start import begun_with
    from .terminal import TerminalReporter, result_table
    from .train import go_on
    from .train import train as begin
    from .trained import load

    run, args = _resumed(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    if run and name:
        raise UserError(f"a run that goes on has its settings already: leave {name} out")
    others = ", ".join(f"{other} ({known.purpose})" for other, known in PRESETS.items())
    if run:
        default = begun_with(run)
        about = f"Go on with {run}, from its last checkpoint; its settings are the defaults below."
    else:
        name = name or preset_for(args)
        default = preset_named(name).config
        about = (
            f"Train a model. Without PRESET, the one that suits the machine, here {name}; its "
            f"values are the defaults below. Presets: {others}. --resume RUN goes on with a run."
        )
    config = parse(default, args, "nanogpt train [PRESET | --resume RUN]", about)
    console = Console(highlight=False)
    with TerminalReporter(console) as reporter:
        result = go_on(run, config, reporter) if run else begin(config, reporter)
    console.print()
    console.print(result_table(result))
    console.print("\n[bold]It writes:[/]")
    best = load(result.run.out, str(result.run.device))
    write(best, [""], writing_of(SampleArgs(seed=config.seed, cuda_graph=config.train.cuda_graph)))


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


def tokenize(args: list[str]) -> None:
    """show how a tokenizer cuts a text"""
    from rich.console import Console

    from . import corpora, tokenizers
    from .display import drawn_tokens, readable
    from .encoding import tokenizer_of
    from .runs import find_run
    from .sources import decoded, empty, standard_input
    from .terminal import Bar

    options = parse(TokenizeArgs(), args, "nanogpt tokenize")
    text = options.text
    if text is None:
        text = "".join(decoded(standard_input(), "standard input"))
        if not text:
            raise empty("standard input")
    kind = options.tokenizer
    if not tokenizers.is_kind(kind) and not os.path.isfile(kind):
        kind = str(find_run(kind) / "best" / "tokenizer.json")
    with Bar(Console()) as bar:
        if tokenizers.learns(kind):
            learned = corpora.load(options.data, progress=bar.tell)
            tokenizer = tokenizer_of(kind, learned, 0.1, bar.tell)
        else:
            tokenizer = tokenizers.make(kind, (), ())
    ids = tokenizer.encode(text)
    size = len(text.encode())
    ratio = size / max(1, len(ids))
    if options.json:
        pieces = [readable(tokenizer.piece(i)) for i in ids]
        answer = {"ids": ids, "tokens": pieces, "bytes": size, "bytes_per_token": ratio}
        print(json.dumps(answer))
        return
    console = Console(highlight=False)
    console.print(drawn_tokens(tokenizer, ids, console.width), soft_wrap=True)
    console.print(
        f"{len(ids):,} tokens of {tokenizer.vocab_size:,} for {size:,} bytes: "
        f"{ratio:.2f} bytes per token"
    )


def evaluate(args: list[str]) -> None:
    """measure a trained model on a whole split"""
    from rich.console import Console

    from . import corpora
    from .checkpoint import load
    from .data import Split
    from .devices import pick_device, use_threads
    from .encoding import encode
    from .evaluate import Ensemble
    from .evaluate import evaluate as measure
    from .runs import find_run
    from .start import described, text_of
    from .terminal import Bar

    options = parse(EvalArgs(), args, "nanogpt eval")
    use_threads()
    device = pick_device(options.device)
    runs = [find_run(run) for run in options.runs or (None,)]
    every = [load(run / "best", device) for run in runs]
    with Bar(Console()) as bar:
        if options.data:
            corpus = corpora.load(options.data, None, options.column, options.separator, bar.tell)
            val_fraction = described(runs[0]).config.val_fraction
        else:
            corpus, val_fraction = text_of(runs[0], bar.tell)
    first = every[0]
    for run, one in zip(runs[1:], every[1:], strict=True):
        if not options.data:
            other, other_fraction = text_of(run)
            if other.facts != corpus.facts or other_fraction != val_fraction:
                raise UserError(f"{runs[0]} and {run} learned from two texts: name one with --data")
        if one.tokenizer.to_json() != first.tokenizer.to_json():
            raise UserError(f"{runs[0]} and {run} have two tokenizers: measure each by itself")
        if one.model.config.block_size != first.model.config.block_size:
            raise UserError(f"{runs[0]} and {run} have two contexts: measure each by itself")
    name = options.split
    if name == "auto":
        name = "all" if options.data and not corpus.tokens else "val"
    part = None if name == "all" else name
    with Bar(Console()) as bar:
        split = Split(encode(corpus, first.tokenizer, part, val_fraction, bar.tell), device)
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


def data(args: list[str]) -> None:
    """show what a text is like, and what is to be beaten on it"""
    from rich.console import Console

    from . import corpora
    from .display import survey_tables
    from .survey import survey
    from .terminal import Bar

    options = parse(DataArgs(), args, "nanogpt data")
    with Bar(Console()) as bar:
        load = partial(corpora.load, column=options.column, separator=options.separator)
        found = survey(load(options.data, progress=bar.tell), bar.tell)
    if options.json:
        print(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    for table in survey_tables(found):
        console.print(table)
        console.print()


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
    "data": data,
    "tokenize": tokenize,
    "inspect": inspect,
    "explain": explain,
    "study": study,
    "presets": presets,
}
