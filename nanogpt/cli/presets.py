"""nanogpt presets."""

from ..errors import UserError


def presets(args: list[str]) -> None:
    """list the runs that train knows by name"""
    from rich.console import Console
    from rich.table import Table

    from ..models import BigramConfig, ModernConfig
    from ..runs.presets import PRESETS

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
