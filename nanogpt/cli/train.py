"""nanogpt train: train a model, or resume a run."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..api import GenerationConfig, load
from ..errors import UserError, join_command, make_line, print_note
from ..interop.trackers import TrackerName, Trackers
from ..models import ModernConfig
from ..runs.config import RunConfig
from ..runs.directory import find_run
from ..runs.presets import PRESETS, default_preset_name, get_preset
from ..runs.reporter import Reporter
from ..runs.run import SavedRun, read_saved_run
from ..runs.settings import apply_settings
from ..runs.starting import adopt_model
from ..system import distributed, launch
from ..system.agreement import agreement
from ..system.devices import requested_memory
from ..system.files import dump_json
from ..text import corpora
from ..text.download import REFRESHING, require_single_process
from ..train import resume_training
from ..train import train as train_model
from .arguments import parse_with_defaults
from .output import train_without_output
from .progress import PlainConsole
from .reporter import TerminalReporter, make_result_table
from .sample import print_completions
from .values import Flag, OptionalRun, flat, placeholder, positional


@dataclass(frozen=True)
class TrainArgs:
    """Train a model."""

    preset: Annotated[str | None, positional, placeholder("[PRESET]")] = None
    """Preset to train. Its values are the defaults of the options below. If PRESET is not given,
    the preset is baby on a CUDA GPU and tiny elsewhere."""
    resume: OptionalRun = None
    """Resume a run, by default the newest run, from its last checkpoint. The settings of the run
    are the defaults of the options below."""
    sample_tokens: int = 500
    """Number of tokens to generate with the best weights when the run ends; 0: no sample."""
    refresh: Flag = False
    """Download the text again, even if the cache has it."""
    config: Path | None = None
    """File with settings, such as the run.json of another run or a part of it. They replace the
    defaults of the options below."""
    print_config: Flag = False
    """Print the settings of the run as JSON, and do not train."""
    track: tuple[TrackerName, ...] = ()
    """Also send the progress to this experiment tracker; repeat the option for several trackers."""
    settings: Annotated[RunConfig, flat] = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.sample_tokens < 0:
            raise ValueError(f"sample_tokens is {self.sample_tokens}: it must be at least 0")

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        if name == "shard" and launch.get_size() == 1:
            return "there is a single process"
        reasons = {
            "refresh": "a run is resumed with the text that it started with",
            "config": "a run is resumed with its own settings",
            "start_from": "a run is resumed from its last checkpoint",
        }
        return reasons.get(name, "") if self.resume is not None else ""


def train(args: list[str]) -> None:
    """Train a model or resume a run, then generate text with the best weights of the run."""
    with ExitStack() as until_the_end:
        _train(args, until_the_end)


def _train(args: list[str], until_the_end: ExitStack) -> None:
    defaults = _Defaults()
    console = PlainConsole()
    # The arguments are parsed within join(), where the processes agree on errors.
    is_resumed = any(word.split("=")[0] == "--resume" for word in args)
    with distributed.join("resumes a run" if is_resumed else "starts a new run"):
        with agreement():
            options = parse_with_defaults(TrainArgs, defaults.choose, args, "nanogpt train")
            if options.refresh:
                require_single_process(*REFRESHING)
        config = options.settings
        if options.print_config:
            print(dump_json(config.to_json()).decode(), end="")
            return
        train_without_output()
        with TerminalReporter(console) as reporter:
            if options.refresh:
                source = config.data, config.column, config.separator
                corpora.refresh_text(*source, reporter.preparing)
            shown: Reporter | None = None
            if distributed.rank() == 0:  # the first process prints
                shown = tracked = until_the_end.enter_context(Trackers(options.track, reporter))
            if defaults.saved is None:
                result = train_model(config, shown)
            else:
                result = resume_training(defaults.saved, config, shown)
    if launch.get_rank():
        return
    console.print()
    console.print(make_result_table(result))
    out = result.run.out
    command = join_command(["nanogpt", "sample", out])
    console.print(
        f"{'saved in':20}  {make_line(out)}; generate more text with: {command}", soft_wrap=True
    )
    device = result.run.device
    del result  # the last reference to the run: the sample can use its memory
    if options.sample_tokens:
        console.print("\nSample:", style="bold")
        sampling = GenerationConfig(
            max_new_tokens=options.sample_tokens,
            seed=config.seed,
            cuda_graph=config.train.cuda_graph,
        )
        try:
            tracked.sample = print_completions(load(out, str(device)), [""], sampling)[0]
        except (RuntimeError, MemoryError) as error:
            if not (size := requested_memory(error)):
                raise
            print()  # the sample may have begun
            print_note(
                f"out of memory: {size} more was requested for the sample; the run is complete, "
                f"so generate text with: {command}"
            )
    has_usual_settings = not config.start_from and config.tokenizer == type(config).tokenizer
    if options.preset == "tiny" and device.type == "cpu" and has_usual_settings:
        better = ["nanogpt", "train", "laptop"]
        for name in ("data", "column", "separator"):
            if (value := getattr(config, name)) != getattr(type(config), name):
                better += [f"--{name}", value]
        advice = f"For better text, train for about 3 minutes: {join_command(better)}"
        console.print(advice, soft_wrap=True)


class _Defaults:
    """Chooses the defaults of the options: the settings of the run to resume, or of a preset."""

    saved: SavedRun | None = None
    """The run to resume."""

    def choose(self, options: TrainArgs) -> tuple[TrainArgs, str]:
        """Return the default options and the description of the command."""
        if options.resume is not None:
            if options.preset:
                raise UserError(
                    f"--resume keeps the settings of the run: leave out {options.preset}"
                )
            run = find_run(options.resume or None, "last")
            self.saved = read_saved_run(run)
            description = (
                f"Resume {make_line(run)} from its last checkpoint. "
                f"Its settings are the defaults below."
            )
            return TrainArgs(resume=str(run), settings=self.saved.config), description
        name = options.preset or default_preset_name(options.settings.device)
        config = self._apply(options, get_preset(name).config)
        if start := options.settings.start_from or config.start_from:
            config = adopt_model(config, str(start))
            if not options.preset and isinstance(config.model, ModernConfig):
                name = f"{name}-fast"  # the presets with the optimizer of modern models
                config = self._apply(options, get_preset(name).config)
                config = adopt_model(config, str(start))
        presets = ", ".join(f"{name} ({preset.purpose})" for name, preset in PRESETS.items())
        description = f"Train a model. The defaults below are those of {name}. Presets: {presets}."
        return TrainArgs(preset=name, settings=config), description

    def _apply(self, options: TrainArgs, config: RunConfig) -> RunConfig:
        return apply_settings(config, options.config) if options.config else config
