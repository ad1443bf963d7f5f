"""nanogpt train: train a model, or resume a run."""

from dataclasses import dataclass, field
from typing import Annotated

from rich.console import Console

from ..api import GenerationConfig, load
from ..errors import UserError
from ..runs.config import RunConfig
from ..runs.directory import find_run
from ..runs.presets import PRESETS, default_preset_name, get_preset
from ..runs.run import read_run_config
from ..train import resume_training
from ..train import train as train_model
from .arguments import OptionalRun, flat, parse_arguments, parse_first_pass, placeholder, positional
from .reporter import TerminalReporter, make_result_table
from .sample import print_completions


@dataclass(frozen=True)
class TrainArgs:
    """Train a model."""

    preset: Annotated[str | None, positional, placeholder("[PRESET]")] = None
    """Preset to train: its values are the defaults of the options below. By default it depends on
    the device: baby on a GPU, tiny elsewhere."""
    resume: OptionalRun = None
    """Resume this run from its last checkpoint, by default the newest run. Its settings are the
    defaults of the options below."""
    config: Annotated[RunConfig, flat] = field(default_factory=RunConfig)


def train(args: list[str]) -> None:
    """Train a model or resume a run, then generate text with its best weights."""
    prog = "nanogpt train"
    first = parse_first_pass(TrainArgs, args, prog)
    if first.resume is not None:
        if first.preset:
            raise UserError(f"--resume keeps the settings of the run: leave out {first.preset}")
        run = find_run(first.resume or None, "last")
        default = TrainArgs(resume=str(run), config=read_run_config(run))
        description = f"Resume {run} from its last checkpoint. Its settings are the defaults below."
    else:
        name = first.preset or default_preset_name(first.config.device)
        default = TrainArgs(preset=name, config=get_preset(name).config)
        presets = ", ".join(f"{name} ({preset.purpose})" for name, preset in PRESETS.items())
        description = f"Train a model. The defaults below are those of {name}. Presets: {presets}."
    config = parse_arguments(default, args, prog, description).config
    console = Console(highlight=False)
    with TerminalReporter(console) as reporter:
        if first.resume is not None:
            result = resume_training(run, config, reporter)
        else:
            result = train_model(config, reporter)
    console.print()
    console.print(make_result_table(result))
    console.print("\n[bold]Sample:[/]")
    best = load(result.run.out, str(result.run.device))
    options = GenerationConfig(seed=config.seed, cuda_graph=config.train.cuda_graph)
    print_completions(best, [""], options)
