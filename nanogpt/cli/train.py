"""nanogpt train."""

from pathlib import Path

from ..errors import UserError
from .arguments import SampleArgs, parse_arguments
from .sample import generation_config, write


def train(args: list[str]) -> None:
    """train a model, from nothing to text"""
    from rich.console import Console

    from ..api import load
    from ..runs.presets import PRESETS, get_preset, preset_for
    from ..runs.run import read_run_config
    from ..train import resume_training
    from ..train import train as begin
    from .reporter import TerminalReporter, result_table

    run, args = _resumed(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    if run and name:
        raise UserError(f"a run that goes on has its settings already: leave {name} out")
    others = ", ".join(f"{other} ({known.purpose})" for other, known in PRESETS.items())
    if run:
        default = read_run_config(run)
        about = f"Go on with {run}, from its last checkpoint; its settings are the defaults below."
    else:
        name = name or preset_for(args)
        default = get_preset(name).config
        about = (
            f"Train a model. Without PRESET, the one that suits the machine, here {name}; its "
            f"values are the defaults below. Presets: {others}. --resume RUN goes on with a run."
        )
    config = parse_arguments(default, args, "nanogpt train [PRESET | --resume RUN]", about)
    console = Console(highlight=False)
    with TerminalReporter(console) as reporter:
        result = resume_training(run, config, reporter) if run else begin(config, reporter)
    console.print()
    console.print(result_table(result))
    console.print("\n[bold]It writes:[/]")
    best = load(result.run.out, str(result.run.device))
    write(
        best,
        [""],
        generation_config(SampleArgs(seed=config.seed, cuda_graph=config.train.cuda_graph)),
    )


def _resumed(args: list[str]) -> tuple[Path | None, list[str]]:
    """The run that --resume names, the newest where it names none; and the other arguments."""
    from ..runs.directory import find_run

    for i, arg in enumerate(args):
        flag, equals, run = arg.partition("=")
        if flag == "--resume":
            rest = args[i + 1 :]
            if not equals and rest and not rest[0].startswith("-"):
                run, *rest = rest
            return find_run(run or None, "last"), args[:i] + rest
    return None, args
