"""nanogpt study: train many models and compare their losses."""

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Interrupted, Stopped, UserError, join_command, make_line
from ..text import corpora
from .arguments import parse_command, report_mistakes
from .output import train_without_output
from .values import Flag

# The modules of a study import torch, which is slow: import them only when a study runs.
if TYPE_CHECKING:
    from ..runs.config import RunConfig, TrainConfig
    from ..studies.ladder import Rung
    from ..studies.trial import Trial


@dataclass(frozen=True)
class _TextArgs:
    """The options of the studies that can use any text."""

    data: str = "tinyshakespeare"
    """Text to train on; see --data of nanogpt train."""
    column: str = "text"
    """Column with the text, in datasets (hf:) and in .jsonl and .parquet files."""
    separator: str = "\n\n"
    """Text inserted between documents."""

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        return corpora.explain_unused(name, self.data)


@dataclass(frozen=True)
class LadderArgs(_TextArgs):
    """Train a series of models, from n-gram counts to a GPT, and compare their losses.

    Each model adds one part to the previous model. The difference between the losses of these two
    models shows what the part contributes. Finished models are not trained again. The results are
    in ladder.json, ladder.md and ladder.svg.
    """

    out: Path = Path("runs/ladder")
    """Directory of the study; it contains the run directory of each model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; on a CUDA GPU, the models and batches are larger."""
    steps: int | None = None
    """Training steps of each model; by default 1,000."""
    seed: int = 1337
    """Seed of the initial weights, dropout, the samples and the order of the batches."""
    json: Flag = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ScalingArgs:
    """Train models of many sizes on many amounts of text, and fit a scaling law to their losses.

    The law is L(N, D) = E + A / N^α + B / D^β, where L is the loss of a model with N parameters
    that is trained on D characters. The study is meant for a GPU. Finished models are not trained
    again. The results are in scaling.json, scaling.md and three pictures.
    """

    out: Path = Path("runs/scaling")
    """Directory of the study; it contains the run directory of each model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto and cuda use all CUDA GPUs of the machine."""
    at_a_time: int = 3
    """Maximum number of models that train at the same time on each GPU."""
    sizes: int = 7
    """Number of model sizes, starting with the smallest; the seventh has 28 million parameters."""
    steps: int = 2500
    """Maximum steps of each model; training ends early if the validation loss stops falling."""
    seed: int = 1337
    """Seed of the initial weights, dropout and the order of the batches."""
    json: Flag = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class DistillationArgs(_TextArgs):
    """Train models that learn from the probabilities of other models, and compare their losses.

    First, teachers learn without other models. Then they generate a text, and students learn from
    both texts, from the mean of the teachers' probabilities, and from counts of n-grams. Students
    are the teachers of the next generation. The last generation has smaller students, too. Finished
    models are not trained again. The results are in distillation.json, distillation.md and
    distillation.svg.
    """

    out: Path = Path("runs/distillation")
    """Directory of the study; it contains the run directory of each model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto and cuda use all CUDA GPUs of the machine. On a GPU, the
    models are larger."""
    at_a_time: int = 1
    """Maximum number of models that train at the same time on each device."""
    teachers: int = 4
    """Number of models that learn from the text alone."""
    students: int = 5
    """Number of full-size students in each generation. There are at most three of each smaller
    size."""
    generations: int = 2
    """Number of generations of students."""
    steps: int | None = None
    """Training steps of each model; by default 3,500 on a CUDA GPU, and 600 elsewhere."""
    seed: int = 1337
    """Seed of the first teacher. All other models have other seeds."""
    json: Flag = False
    """Print one JSON object instead of lines."""


STUDIES: dict[str, type[LadderArgs | ScalingArgs | DistillationArgs]] = {
    "ladder": LadderArgs,
    "scaling": ScalingArgs,
    "distillation": DistillationArgs,
}


def study(args: list[str]) -> None:
    """Run a study, or resume it."""
    options = parse_command(STUDIES, args, "nanogpt study")
    command = join_command(["nanogpt", "study", *args])
    train_without_output()
    try:
        if isinstance(options, LadderArgs):
            _run_ladder(options)
        elif isinstance(options, ScalingArgs):
            _run_scaling(options)
        else:
            _run_distillation(options)
    except Interrupted as error:
        raise Interrupted(error.number, error.saved, command) from None
    except Stopped as error:
        raise Stopped(
            error.reason, f"; finished models are saved; resume with: {command}"
        ) from None


def _make_base(options: LadderArgs | DistillationArgs, train: "TrainConfig") -> "RunConfig":
    """Return the settings that all runs of a study share. Raises ValueError."""
    from ..runs.config import RunConfig

    return RunConfig(
        data=options.data,
        column=options.column,
        separator=options.separator,
        out=options.out,
        seed=options.seed,
        device=options.device,
        train=train,
    )


def _run_ladder(options: LadderArgs) -> None:
    """Train the models of the ladder and print a row for each."""
    from ..studies.ladder import LADDER_CONFIGS, run_ladder
    from ..system.devices import pick_device
    from .progress import PlainConsole
    from .reporter import LiveReporter

    config = LADDER_CONFIGS["cuda" if pick_device(options.device).type == "cuda" else "cpu"]
    steps = config.train.steps if options.steps is None else options.steps
    eval_every = max(1, config.train.eval_every * steps // config.train.steps)
    with report_mistakes(LadderArgs):
        train = replace(config.train, steps=steps, eval_every=eval_every)
        base = _make_base(options, train)
    console = PlainConsole(quiet=options.json)
    rows = format_rungs()
    console.print(next(rows), style="bold", no_wrap=True, overflow="ellipsis")

    def print_rung(rung: "Rung") -> None:
        console.print(rows.send(rung), no_wrap=True, overflow="ellipsis")

    with LiveReporter(console) as reporter:
        ladder = run_ladder(base, config, reporter, print_rung)
    if options.json:
        print(json.dumps(asdict(ladder)))
    console.print(
        f"\nsaved in {make_line(options.out)}: ladder.json, ladder.md, ladder.svg", soft_wrap=True
    )


def _run_scaling(options: ScalingArgs) -> None:
    """Train the models of the scaling study; print a line for each model, and the fitted law."""
    from rich.markdown import Markdown

    from ..runs.config import RunConfig, TrainConfig
    from ..studies.findings import format_tables
    from ..studies.scaling import SHAPES, Grid, run_scaling
    from ..system.devices import pick_device
    from .progress import PlainConsole, duration

    if not 4 <= options.sizes <= len(SHAPES):
        raise UserError(
            f"--sizes is {options.sizes}: it must be at least 4 and at most {len(SHAPES)}"
        )
    if options.at_a_time < 1:
        raise UserError(f"--at-a-time is {options.at_a_time}: it must be at least 1")
    pick_device(options.device)
    with report_mistakes(ScalingArgs):
        base = RunConfig(out=options.out, seed=options.seed, device=options.device)
        TrainConfig(steps=options.steps)
    grid = Grid(shapes=SHAPES[: options.sizes], steps=options.steps)
    console = PlainConsole(quiet=options.json)

    def print_trial(run: "RunConfig", trial: "Trial", done: int, total: int) -> None:
        console.print(
            f"{done:>3} of {total}  {run.name:28} val loss {trial.val_loss:.4f}  "
            f"{trial.tokens:>11,} tokens  {duration(trial.seconds)}",
            soft_wrap=True,
        )

    def print_message(line: str) -> None:
        console.print(line, soft_wrap=True)

    scaling = run_scaling(base, grid, options.at_a_time, print_trial, print_message)
    if options.json:
        print(json.dumps(asdict(scaling)))
    console.print()
    console.print(Markdown(format_tables(scaling)))
    console.print(
        f"saved in {make_line(options.out)}: scaling.json, scaling.md, pictures", soft_wrap=True
    )


def _run_distillation(options: DistillationArgs) -> None:
    """Train the generations; print a line for each model and for each group."""
    from ..runs.config import TrainConfig
    from ..studies.distillation import Group, run_distillation
    from .progress import PlainConsole, duration

    for name in ("teachers", "students", "generations", "at_a_time"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {getattr(options, name)}: it must be at least 1")
    with report_mistakes(DistillationArgs):
        steps = TrainConfig().steps if options.steps is None else options.steps
        base = _make_base(options, TrainConfig(steps=steps))
    console = PlainConsole(quiet=options.json)

    def print_trial(run: "RunConfig", trial: "Trial") -> None:
        console.print(
            f"{run.name:16} val loss {trial.val_loss:.4f}  {duration(trial.seconds)}",
            soft_wrap=True,
        )

    def print_group(group: Group) -> None:
        console.print(
            f"{group.name:16} mean {group.mean:.4f}, all together {group.ensemble_loss:.4f}; "
            f"on the training text {group.train_loss:.4f}",
            style="bold",
            soft_wrap=True,
        )

    def print_message(line: str) -> None:
        console.print(line, soft_wrap=True)

    result = run_distillation(
        base,
        (options.teachers, options.students, options.generations),
        options.at_a_time,
        options.steps,
        print_trial,
        print_group,
        print_message,
    )
    if options.json:
        print(json.dumps(asdict(result)))
    console.print(
        f"saved in {make_line(options.out)}: distillation.json, distillation.md, distillation.svg",
        soft_wrap=True,
    )


def format_rungs() -> Generator[str, "Rung", None]:
    """Yield the header of the table, then one row for each rung (model) sent to this generator."""
    from ..studies.ladder import format_bits
    from .progress import duration

    form = "{:13} {:>8} {:>8} {:>9} {:>11} {:>9}  {}"
    row = form.format("rung", "val loss", "gain", "bits/byte", "parameters", "time", "sample")
    previous_loss = None
    while True:
        rung = yield row
        gain = "" if previous_loss is None else f"{previous_loss - rung.val_loss:+.4f}"
        previous_loss = rung.val_loss
        row = form.format(
            rung.name,
            f"{rung.val_loss:.4f}",
            gain,
            format_bits(rung.bits_per_byte),
            f"{rung.parameters:,}",
            duration(rung.seconds),
            rung.sample,
        )
