"""The commands that show what is inside a run: nanogpt inspect and nanogpt explain."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from .arguments import InspectArgs, parse
from .errors import UserError, nearest, note


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
    out = options.out or run / "inspect.html"
    if out.is_dir():
        raise UserError(f"{out} is a directory: name a file with --out")
    trained = load(run, options.device, "float32")
    context = trained.model.config.block_size
    text = options.prompt or trained.generate(max_new_tokens=min(64, context))
    if (tokens := len(trained.tokenizer.encode(text))) > context:
        note(f"the model reads the last {context} of the prompt's {tokens:,} tokens")
    if min(tokens, context) > MOST:
        note(f"the page shows the last {MOST} of these")
    parameters = sum(p.numel() for p in trained.model.parameters())
    kind = type(trained.model).__name__
    title = f"{run}: {kind}, {parameters:,} parameters, step {trained.step:,}"
    title += f", validation loss {trained.best.val_loss:.4f}" if trained.best else ""
    title += "" if options.prompt else "; a text of its own"
    found = inspected(trained.model, trained.tokenizer, text, title)
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
    from .presets import PRESETS, preset_for, preset_named
    from .runs import RUNS, find_run
    from .sources import quiet
    from .start import described

    as_json = "--json" in args
    args = [arg for arg in args if arg != "--json"]
    size = args.pop(0) if args and not args[0].startswith("-") else preset_for(args)
    here = any((place / "run.json").exists() for place in (Path(size), RUNS / size))
    if size in PRESETS or (nearest(size, PRESETS) and not here):
        default = preset_named(size).config
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
