"""nanogpt explain: show the parameters, memory, operations and time that a run will need."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table

from ..errors import UserError, suggest_nearest
from ..models import BigramConfig, PlainConfig
from ..reports.explain import Explanation, Line, explain_run
from ..reports.rates import measure_rates
from ..runs.config import RunConfig
from ..runs.directory import RUNS, find_run, find_tokenizer
from ..runs.presets import PRESETS, default_preset_name, get_preset
from ..runs.run import read_description
from ..system.devices import limit_threads, pick_device, pick_precision
from ..text import corpora
from ..text.encoding import get_tokenizer
from ..text.readers import no_progress
from .arguments import Flag, flat, parse_with_defaults, placeholder, positional
from .progress import duration


@dataclass(frozen=True)
class ExplainArgs:
    """Show what a run will need: parameters, memory, operations, time."""

    size: Annotated[str | None, positional, placeholder("[SIZE]")] = None
    """Preset or run to explain. Its values are the defaults of the options below. If SIZE is not
    given, the preset is baby on a CUDA GPU and tiny elsewhere."""
    json: Flag = False
    """Print one JSON object instead of tables."""
    config: Annotated[RunConfig, flat] = field(default_factory=RunConfig)


def explain(args: list[str]) -> None:
    """Print what a run needs."""
    options = parse_with_defaults(ExplainArgs, _choose_defaults, args, "nanogpt explain")
    size = options.size
    assert size is not None
    config = options.config
    if isinstance(config.model, PlainConfig):
        raise UserError(
            f"{size} is a GPT without some of its parts, and nanogpt explain does not support it: "
            f"name a preset or another run"
        )
    limit_threads()
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    default = _find_config(size)
    if (config.data, config.tokenizer) != (default.data, default.tokenizer):
        corpus = corpora.load_corpus(config.data, config.column, config.separator)
        kind = find_tokenizer(config.tokenizer)
        tokenizer = get_tokenizer(kind, corpus, config.val_fraction, no_progress)
        config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    model, training = config.model, config.train
    tokens = training.batch_size // training.accumulation * model.block_size
    width = model.vocab_size if isinstance(model, BigramConfig) else model.n_embd
    rates = measure_rates(device, precision, tokens, width)
    explanation = explain_run(config, device, precision, rates)
    if options.json:
        print(json.dumps(asdict(explanation)))
        return
    console = Console(highlight=False)
    for table in make_explanation_tables(explanation):
        console.print(table)
        console.print()
    symbols = {"V": ("vocabulary", model.vocab_size), "n": ("tokens at a time", tokens)}
    if not isinstance(model, BigramConfig):
        symbols = {
            "L": ("layers", model.n_layer),
            "C": ("channels", model.n_embd),
            "H": ("heads", model.n_head),
            "T": ("block size", model.block_size),
        } | symbols
    values = ", ".join(f"{name} = {value:,} ({words})" for name, (words, value) in symbols.items())
    console.print(
        f"{size} on {device.type} in {str(precision).removeprefix('torch.')}: {values}. The times "
        f"are estimates from speeds just measured on this machine, and do not include evaluations."
    )


def _choose_defaults(options: ExplainArgs) -> tuple[ExplainArgs, str]:
    """Return the default options for a preset or a run, and the description of the command."""
    size = options.size or default_preset_name(options.config.device)
    description = (
        f"Show what a run will need: parameters, memory, operations, time. "
        f"The defaults below are those of {size}. Presets: {', '.join(PRESETS)}."
    )
    return ExplainArgs(size=size, config=_find_config(size)), description


def _find_config(size: str) -> RunConfig:
    """Return the configuration of a preset or a run."""
    is_run = any((directory / "run.json").exists() for directory in (Path(size), RUNS / size))
    if size in PRESETS or (suggest_nearest(size, PRESETS) and not is_run):
        return get_preset(size).config
    try:
        return read_description(find_run(size)).config
    except UserError as error:
        presets = "" if is_run else f"; the presets: {', '.join(PRESETS)}"
        raise UserError(f"{error}{presets}") from None


def make_explanation_tables(explanation: Explanation) -> list[Table]:
    """Return tables of the parameters, the memory, the operations and the time of a run."""

    def make_table(title: str, lines: Sequence[Line], form: Callable[[float], str]) -> Table:
        table = Table(title, "by", "", box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.columns[2].justify = "right"
        for line in lines:
            style = "bold" if line.total else ""
            table.add_row(line.part, line.formula, form(line.value), style=style)
        return table

    largest = max(line.value for line in explanation.memory)
    return [
        make_table("parameters", explanation.parameters, lambda value: f"{value:,.0f}"),
        make_table("memory", explanation.memory, make_byte_format(largest)),
        make_table("operations", explanation.operations, lambda value: format_quantity(value, "")),
        make_table(
            "time",
            explanation.time,
            lambda s: duration(s) if s >= 60 else format_quantity(s, "s"),
        ),
    ]


def make_byte_format(largest: float) -> Callable[[float], str]:
    """Return a function that formats numbers of bytes: in kB if `largest` < 1 MB, else in MB."""
    size, unit = (1e3, "kB") if largest < 1e6 else (1e6, "MB")
    return lambda value: f"{value / size:,.1f} {unit}"


def format_quantity(value: float, unit: str) -> str:
    """Format a value with three significant digits and an SI prefix, such as 1.23 ms."""
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    value = float(f"{value:.3g}")  # round first, so that 999,600 becomes 1 M
    size = next((size for size in prefixes if value >= size), 1.0)
    return f"{value / size:.3g} {prefixes[size]}{unit}".strip()
