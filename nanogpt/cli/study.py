"""The command that answers a question by training many models: nanogpt study."""

import json
import shlex
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ..errors import Interrupted, Stopped, UserError, suggest_nearest
from .arguments import LadderArgs, ScalingArgs, parse_arguments
from .progress import duration

if TYPE_CHECKING:
    from ..studies.ladder import Rung
    from ..studies.trial import Trial


def study(args: list[str]) -> None:
    """answer a question by training many models: study ladder, study scaling"""
    studies = {"ladder": _ladder, "scaling": _scaling}
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    if not name and args[:1] in (["--help"], ["-h"]):
        print(f"usage: nanogpt study {' | '.join(studies)} [OPTIONS]")
    elif name not in studies:
        known = f"use one of {', '.join(studies)}"
        raise UserError(f"there is no study {name!r}: {suggest_nearest(name, studies) or known}")
    else:
        command = shlex.join(["nanogpt", "study", name, *args])
        try:
            studies[name](args)
        except Interrupted as error:
            raise Interrupted(error.number, error.saved, command) from None
        except Stopped as error:
            raise Stopped(error.reason, f"; what is done is kept, go on with: {command}") from None


@contextmanager
def mistakes() -> Iterator[None]:
    """Within it, a setting that no run can have is the user's mistake."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def _ladder(args: list[str]) -> None:
    """what each piece of a GPT buys"""
    from rich.console import Console

    from ..runs.config import RunConfig
    from ..studies.ladder import LADDER_CONFIGS, run_ladder
    from ..system.devices import pick_device
    from .reporter import LiveReporter

    options = parse_arguments(LadderArgs(), args, "nanogpt study ladder")
    size = LADDER_CONFIGS["cuda" if pick_device(options.device).type == "cuda" else "cpu"]
    steps = size.train.steps if options.steps is None else options.steps
    every = max(1, size.train.eval_every * steps // size.train.steps)
    with mistakes():
        base = RunConfig(
            data=options.data,
            out=options.out,
            seed=options.seed,
            device=options.device,
            train=replace(size.train, steps=steps, eval_every=every),
        )
    console = Console(highlight=False, quiet=options.json)
    rows = ladder_rows()
    console.print(next(rows), style="bold", no_wrap=True, overflow="ellipsis")

    def report(rung: "Rung") -> None:
        console.print(rows.send(rung), markup=False, no_wrap=True, overflow="ellipsis")

    with LiveReporter(console) as reporter:
        ladder = run_ladder(base, size, reporter, report)
    if options.json:
        print(json.dumps(asdict(ladder)))
    console.print(f"\nkept in {options.out}: ladder.json, ladder.md, ladder.svg", soft_wrap=True)


def _scaling(args: list[str]) -> None:
    """what size and data buy"""
    from rich.console import Console
    from rich.markdown import Markdown

    from ..runs.config import RunConfig, TrainConfig
    from ..studies.findings import format_tables
    from ..studies.scaling import SHAPES, Grid, run_scaling
    from ..system.devices import pick_device
    from .progress import duration

    options = parse_arguments(ScalingArgs(), args, "nanogpt study scaling")
    if not 4 <= options.sizes <= len(SHAPES):
        raise UserError(f"sizes is {options.sizes}: it must be at least 4, at most {len(SHAPES)}")
    if options.at_a_time < 1:
        raise UserError(f"at-a-time is {options.at_a_time}: it must be at least 1")
    pick_device(options.device)
    with mistakes():
        base = RunConfig(out=options.out, seed=options.seed, device=options.device)
        TrainConfig(steps=options.steps)
    grid = Grid(shapes=SHAPES[: options.sizes], steps=options.steps)
    console = Console(highlight=False, quiet=options.json)

    def report(run: RunConfig, came: "Trial", done: int, of: int) -> None:
        console.print(
            f"{done:>3} of {of}  {run.name:28} val loss {came.val_loss:.4f}  "
            f"{came.tokens:>11,} tokens  {duration(came.seconds)}",
            soft_wrap=True,
        )

    def print_message(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    found = run_scaling(base, grid, options.at_a_time, report, print_message)
    if options.json:
        print(json.dumps(asdict(found)))
    console.print()
    console.print(Markdown(format_tables(found)))
    console.print(f"kept in {options.out}: scaling.json, scaling.md, pictures", soft_wrap=True)


def ladder_rows() -> Generator[str, "Rung", None]:
    """First the names of columns, then for each rung that is sent a row."""
    form = "{:13} {:>8} {:>8} {:>9} {:>11} {:>9}  {}"
    row = form.format("rung", "val loss", "gain", "bits/byte", "parameters", "time", "writes")
    before = None
    while True:
        rung = yield row
        gain = "" if before is None else f"{before - rung.val_loss:+.4f}"
        before = rung.val_loss
        row = form.format(
            rung.name,
            f"{rung.val_loss:.4f}",
            gain,
            f"{rung.bits_per_byte:.4f}",
            f"{rung.parameters:,}",
            duration(rung.seconds),
            rung.sample,
        )
