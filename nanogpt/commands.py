"""The commands. Whatever needs torch is imported when one is chosen."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    DataArgs,
    EvalArgs,
    InspectArgs,
    SampleArgs,
    TokenizeArgs,
    nearest,
    parse,
)
from .errors import UserError, note
from .sampling import sample, write, writing_of
from .study import study

if TYPE_CHECKING:
    from .presets import Preset


def train(args: list[str]) -> None:
    """train a model, from nothing to text"""
    from rich.console import Console

    from .presets import PRESETS
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
        name = name or _preset_for(args)
        default = _preset(name).config
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


def inspect(args: list[str]) -> None:
    """show where a model looks and what it expects, on a web page"""
    from .devices import use_threads
    from .files import write_whole
    from .inspection import MOST, page
    from .inspection import inspect as inspected
    from .runs import find_run
    from .trained import load

    options = parse(InspectArgs(), args, "nanogpt inspect")
    use_threads()
    run = find_run(options.run)
    trained = load(run, options.device, "float32")
    context = trained.model.config.block_size
    text = options.prompt or trained.generate(max_new_tokens=min(64, context))
    if (tokens := len(trained.tokenizer.encode(text))) > context:
        note(f"the model reads the last {context} of the prompt's {tokens:,} tokens")
    if min(tokens, context) > MOST:
        note(f"the page shows the last {MOST} of these")
    parameters = sum(p.numel() for p in trained.model.parameters())
    title = f"{run}: {type(trained.model).__name__}, {parameters:,} parameters, "
    title += f"step {trained.step:,}"
    title += f", validation loss {trained.best.val_loss:.4f}" if trained.best else ""
    title += "" if options.prompt else "; a text of its own"
    found = inspected(trained.model, trained.tokenizer, text, title)
    out = options.out or run / "inspect.html"
    if out.is_dir() or not out.name:
        raise UserError(f"{out} is a directory: name a file with --out")
    try:
        write_whole(out, page(found).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; name another file with --out"
        ) from None
    print(out)


def explain(args: list[str]) -> None:
    """tell what a run takes before it is begun: parameters, memory, operations, time"""
    from rich.console import Console

    from . import corpora
    from .devices import measured_rates, pick_device, pick_precision, use_threads
    from .display import explanation_tables
    from .encoding import tokenizer_of
    from .explain import explain as explained
    from .models import BigramConfig, PlainConfig
    from .presets import PRESETS
    from .runs import RUNS, find_run
    from .sources import quiet
    from .start import described

    as_json = "--json" in args
    args = [arg for arg in args if arg != "--json"]
    size = args.pop(0) if args and not args[0].startswith("-") else _preset_for(args)
    here = any((place / "run.json").exists() for place in (Path(size), RUNS / size))
    if size in PRESETS or (nearest(size, PRESETS) and not here):
        default = _preset(size).config
    else:
        try:
            default = described(find_run(size)).config
        except UserError as error:
            known = "" if here else f"; the presets: {', '.join(PRESETS)}"
            raise UserError(f"{error}{known}") from None
    about = (
        f"Tell what a run takes, before it is begun. SIZE is a preset or a run, here {size}; its "
        f"values are the defaults below. --json prints one JSON object instead."
    )
    config = parse(default, args, "nanogpt explain [SIZE]", about)
    if isinstance(config.model, PlainConfig):
        raise UserError(f"{size} is a GPT with parts left out, and only whole ones are explained")
    use_threads()
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if (config.data, config.tokenizer) != (default.data, default.tokenizer):
        corpus = corpora.load(config.data, None, config.column, config.separator)
        tokenizer = tokenizer_of(config.tokenizer, corpus, config.val_fraction, quiet)
        model = replace(config.model, vocab_size=tokenizer.vocab_size)
        config = replace(config, model=model)
    model, training = config.model, config.train
    n = training.batch_size // training.accumulation * model.block_size
    width = model.vocab_size if isinstance(model, BigramConfig) else model.n_embd
    found = explained(config, device, precision, measured_rates(device, precision, n, width))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    for table in explanation_tables(found):
        console.print(table)
        console.print()
    letters = {"V": ("vocabulary", model.vocab_size), "n": ("tokens at a time", n)}
    if not isinstance(model, BigramConfig):
        letters = {
            "L": ("layers", model.n_layer),
            "C": ("channels", model.n_embd),
            "H": ("heads", model.n_head),
            "T": ("context", model.block_size),
        } | letters
    values = ", ".join(f"{sign} = {value:,} ({name})" for sign, (name, value) in letters.items())
    console.print(
        f"{size} on {device.type} in {str(precision).removeprefix('torch.')}: {values}. The rates "
        f"are this machine's, measured just now; evaluations come on top."
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
    "data": data,
    "tokenize": tokenize,
    "inspect": inspect,
    "explain": explain,
    "study": study,
    "presets": presets,
}


def _preset(name: str) -> "Preset":
    from .presets import PRESETS

    if name not in PRESETS:
        close, known = nearest(name, PRESETS), f"he presets are {', '.join(PRESETS)}"
        advice = f"{close} T{known}" if close else f"t{known}"
        raise UserError(f"there is no preset {name!r}: {advice}")
    return PRESETS[name]


def _preset_for(args: list[str]) -> str:
    """The preset that suits the device that args ask for."""
    from .devices import pick_device
    from .presets import default_preset

    asked = re.search(r"--device[= ](\S+)", " ".join(args))
    return default_preset(pick_device(asked[1] if asked else "auto").type)
