"""nanogpt explain: show the parameters, memory, operations and time that a run will need."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from rich.table import Table

from ..errors import UserError, make_line, suggest_nearest
from ..models import BigramConfig
from ..reports.explain import Explanation, explain_run
from ..reports.rates import measure_rates
from ..runs.config import RunConfig
from ..runs.directory import RUNS, find_run, find_tokenizer
from ..runs.parameters import Line
from ..runs.presets import PRESETS, default_preset_name, get_preset
from ..runs.run import read_description
from ..runs.sharing import require_equal_shares
from ..runs.start import set_vocab_size
from ..runs.starting import adopt_model
from ..system.devices import limit_threads, name_precision, pick_device, pick_precision
from ..system.files import path_exists
from ..system.memory import format_count, format_quantity
from ..text import corpora
from ..text.encoding import get_tokenizer
from ..text.readers import no_progress
from ..text.tokenizers import FIXED_SIZES
from .arguments import parse_with_defaults
from .progress import PlainConsole, duration
from .values import Flag, flat, placeholder, positional


@dataclass(frozen=True)
class ExplainArgs:
    """Show what a run will need: parameters, memory, operations, time."""

    size: Annotated[str | None, positional, placeholder("[SIZE]")] = None
    """Preset or run to explain. Its values are the defaults of the options below. If SIZE is not
    given, the preset is baby on a CUDA GPU and tiny elsewhere."""
    processes: int = 1
    """Number of processes that share each batch. The memory and the time are those of one process;
    the operations are those of all."""
    json: Flag = False
    """Print one JSON object instead of tables."""
    config: Annotated[RunConfig, flat] = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not 0 < self.processes < 2**31:
            value = self.processes
            raise ValueError(f"processes is {value}: it must be at least 1 and less than 2**31")

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        if name == "shard" and self.processes == 1:
            return "there is a single process"
        if name == "mean_teacher" and self.processes > 1:  # it does not work with shard
            return ""
        is_teacher = "teacher" in name or name in ("transfer", "transfer_share", "ngram_weight")
        return "explain does not count the work of teachers" if is_teacher else ""


def explain(args: list[str]) -> None:
    """Print what a run needs."""
    options = parse_with_defaults(ExplainArgs, _choose_defaults, args, "nanogpt explain")
    size = options.size
    assert size is not None
    config = options.config
    limit_threads()
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    require_equal_shares(config, device, precision, options.processes)
    default = _find_config(size)
    if start := config.start_from:
        default = adopt_model(default, str(start))
    config = _set_vocabulary(config, default)
    model, training = config.model, config.train
    parts = training.accumulation * options.processes
    tokens = training.batch_size // parts * model.block_size
    width = model.vocab_size if isinstance(model, BigramConfig) else model.n_embd
    rates = measure_rates(device, precision, tokens, width, config.precision == "float8")
    explanation = explain_run(config, device, precision, rates, options.processes)
    if options.json:
        print(json.dumps(asdict(explanation)))
        return
    console = PlainConsole()
    for table in make_explanation_tables(explanation):
        console.print(table)
        console.print()
    symbols = {"V": ("vocabulary", model.vocab_size), "n": ("tokens in a forward pass", tokens)}
    if not isinstance(model, BigramConfig):
        symbols = {
            "L": ("layers", model.n_layer),
            "C": ("channels", model.n_embd),
            "H": ("heads", model.n_head),
            "T": ("block size", model.block_size),
        } | symbols
    values = ", ".join(
        f"{name} = {format_count(value)} ({words})" for name, (words, value) in symbols.items()
    )
    name = name_precision(config.precision, precision)
    console.print(
        f"{make_line(size)} on {device.type} in {name}: {values}. "
        f"The times are estimates from speeds just measured on this machine, and do not include "
        f"evaluations{' or communication' if options.processes > 1 else ''}."
    )


def _set_vocabulary(config: RunConfig, default: RunConfig) -> RunConfig:
    """Return the settings with the size of the vocabulary, if the tokenizer or the text is new.

    `default` are the settings of the preset or the run that this command explains.
    """
    vocab_size = FIXED_SIZES.get(config.tokenizer)
    is_new = (config.data, config.tokenizer) != (default.data, default.tokenizer)
    if is_new and not vocab_size:
        corpus = corpora.load_corpus(config.data, config.column, config.separator)
        kind = find_tokenizer(config.tokenizer)
        vocab_size = get_tokenizer(kind, corpus, config.val_fraction, no_progress).vocab_size
    if not vocab_size:
        return config
    model = config.model
    if model.vocab_size == default.model.vocab_size:  # not given, so it may change
        model = replace(model, vocab_size=type(model)().vocab_size)
    return replace(config, model=set_vocab_size(model, vocab_size))


def _choose_defaults(options: ExplainArgs) -> tuple[ExplainArgs, str]:
    """Return the default options for a preset or a run, and the description of the command."""
    size = options.size or default_preset_name(options.config.device)
    description = (
        f"Show what a run will need: parameters, memory, operations, time. "
        f"The defaults below are those of {make_line(size)}. Presets: {', '.join(PRESETS)}."
    )
    config = _find_config(size)
    if start := options.config.start_from:
        config = adopt_model(config, str(start))
    return ExplainArgs(size=size, config=config), description


def _find_config(size: str) -> RunConfig:
    """Return the configuration of a preset or a run."""
    if size in PRESETS:
        return get_preset(size).config
    is_run = any(path_exists(directory / "run.json") for directory in (Path(size), RUNS / size))
    if suggest_nearest(size, PRESETS) and not is_run:
        return get_preset(size).config
    try:
        return read_description(find_run(size)).config
    except UserError as error:
        presets = "" if is_run else f"; the presets: {', '.join(PRESETS)}"
        raise UserError(f"{error}{presets}") from None


def make_explanation_tables(explanation: Explanation) -> list[Table]:
    """Return tables of the parameters, the memory, the operations and the time of a run."""

    def make_table(title: str, lines: Sequence[Line], form: Callable[[float], str]) -> Table:
        header = "formula" if lines[0].formula else ""
        table = Table(title, header, "", box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.columns[2].justify = "right"
        for line in lines:
            style = "bold" if line.total else ""
            table.add_row(line.part, line.formula, form(line.value), style=style)
        return table

    largest = max(line.value for line in explanation.memory)
    form_bytes = make_byte_format(largest)
    peaks = explanation.peaks
    return [
        make_table("parameters", explanation.parameters, format_count),
        make_table("memory", explanation.memory, form_bytes),
        *([make_table("peak memory with", peaks, form_bytes)] if peaks else []),
        make_table("operations", explanation.operations, lambda value: format_quantity(value, "")),
        make_table("time", explanation.time, format_time),
    ]


def make_byte_format(largest: float) -> Callable[[float], str]:
    """Return a function that formats numbers of bytes; `largest` determines the unit.

    The unit is kB if `largest` is less than 1 MB, and MB if it is less than 1 TB. Otherwise, each
    number has its own unit.
    """
    if largest >= 1e12:
        return lambda value: format_quantity(value, "B")
    size, unit = (1e3, "kB") if largest < 1e6 else (1e6, "MB")
    return lambda value: f"{value / size:,.1f} {unit}"


def format_time(seconds: float) -> str:
    """Format seconds as 23.4 ms, 3:07 min or 1:02:03 h; a billion seconds or more as years."""
    if seconds >= 1e9:
        years = seconds / (365.25 * 24 * 3600)
        return f"{years:,.0f} years" if years < 1e15 else f"{years:.3g} years"
    return duration(seconds) if seconds >= 60 else format_quantity(seconds, "s")
