"""nanogpt explain."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from ..errors import UserError, suggest_nearest
from ..reports.explain import Explanation, Line
from .arguments import parse_arguments
from .progress import duration


def explanation_tables(found: Explanation) -> list[Table]:
    """What a run takes: parameters, memory, operations, time."""

    def table(title: str, lines: Sequence[Line], shown: Callable[[float], str]) -> Table:
        drawn = Table(title, "by", "", box=None, padding=(0, 2, 0, 0), header_style="bold")
        drawn.columns[2].justify = "right"
        for line in lines:
            style = "bold" if line.total else ""
            drawn.add_row(line.part, line.formula, shown(line.value), style=style)
        return drawn

    return [
        table("parameters", found.parameters, lambda value: f"{value:,.0f}"),
        table("memory", found.memory, bytes_like(max(line.value for line in found.memory))),
        table("operations", found.operations, lambda value: scaled(value, "")),
        table("time", found.time, lambda s: duration(s) if s >= 60 else scaled(s, "s")),
    ]


def bytes_like(largest: float) -> Callable[[float], str]:
    """How to write bytes, in one unit for all of which none is more than this."""
    size, unit = (1e3, "kB") if largest < 1e6 else (1e6, "MB")
    return lambda value: f"{value / size:,.1f} {unit}"


def scaled(value: float, unit: str) -> str:
    """A number in the unit of which there are at least one and less than a thousand: 1.23 ms."""
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    value = float(f"{value:.3g}")  # before its unit is chosen: 999,600 are 1 M
    size = next((size for size in prefixes if value >= size), 1.0)
    return f"{value / size:.3g} {prefixes[size]}{unit}".strip()


def explain(args: list[str]) -> None:
    """tell what a run takes before it is begun: parameters, memory, operations, time"""
    from rich.console import Console

    from ..models import BigramConfig, PlainConfig
    from ..reports.explain import explain_run
    from ..reports.rates import measure_rates
    from ..runs.directory import RUNS, find_run
    from ..runs.presets import PRESETS, get_preset, preset_for
    from ..runs.run import read_description
    from ..system.devices import limit_threads, pick_device, pick_precision
    from ..text import corpora
    from ..text.encoding import get_tokenizer
    from ..text.readers import quiet

    as_json = "--json" in args
    args = [arg for arg in args if arg != "--json"]
    size = args.pop(0) if args and not args[0].startswith("-") else preset_for(args)
    here = any((place / "run.json").exists() for place in (Path(size), RUNS / size))
    if size in PRESETS or (suggest_nearest(size, PRESETS) and not here):
        default = get_preset(size).config
    else:
        try:
            default = read_description(find_run(size)).config
        except UserError as error:
            known = "" if here else f"; the presets: {', '.join(PRESETS)}"
            raise UserError(f"{error}{known}") from None
    about = (
        f"Tell what a run takes, before it is begun. SIZE is a preset or a run, here {size}; its "
        f"values are the defaults below. --json prints one JSON object instead."
    )
    config = parse_arguments(default, args, "nanogpt explain [SIZE]", about)
    if isinstance(config.model, PlainConfig):
        raise UserError(f"{size} is a GPT with parts left out, and only whole ones are explained")
    limit_threads()
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if (config.data, config.tokenizer) != (default.data, default.tokenizer):
        corpus = corpora.load_corpus(config.data, None, config.column, config.separator)
        tokenizer = get_tokenizer(config.tokenizer, corpus, config.val_fraction, quiet)
        model = replace(config.model, vocab_size=tokenizer.vocab_size)
        config = replace(config, model=model)
    model, training = config.model, config.train
    n = training.batch_size // training.accumulation * model.block_size
    width = model.vocab_size if isinstance(model, BigramConfig) else model.n_embd
    found = explain_run(config, device, precision, measure_rates(device, precision, n, width))
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
