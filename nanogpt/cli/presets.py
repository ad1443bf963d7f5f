"""nanogpt presets: list the presets of nanogpt train."""

from dataclasses import dataclass

from rich.table import Table

from ..models import BigramConfig, ModernConfig
from ..runs.presets import PRESETS
from .arguments import parse_arguments
from .progress import PlainConsole


@dataclass(frozen=True)
class PresetsArgs:
    """List the presets of nanogpt train."""


def presets(args: list[str]) -> None:
    """Print a table of the presets."""
    parse_arguments(PresetsArgs(), args, "nanogpt presets")
    table = Table("preset", "model", "steps", "batch", "purpose", box=None, header_style="bold")
    for name, preset in PRESETS.items():
        model, training = preset.config.model, preset.config.train
        shape = f"block size {model.block_size}"
        if not isinstance(model, BigramConfig):
            size = f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} channels"
            shape = f"{size}, {shape}"
        if isinstance(model, ModernConfig):
            shape = "modern, " + shape
        table.add_row(name, shape, f"{training.steps:,}", str(training.batch_size), preset.purpose)
    PlainConsole().print(table)
