"""What size and data buy: a law L(N, D) of parameters and text, measured on a grid of both.

N are the parameters, D the characters of text that there are to learn from, E what would be left of
the loss with endless both (Kaplan et al. 2020, arXiv:2001.08361, has the question; Hoffmann et al.
2022, arXiv:2203.15556, section 3.3, a formula and how it is fitted). Every model is trained until
it gets no better, at a constant learning rate, and measured by the average of its weights, which
stands for a rate that falls (Hägele et al. 2024, arXiv:2405.18392). Where there are many more
characters than parameters, little is learned by heart, and no dropout is tried; the fewer there
are, the more of it. What looks best, and what is near that, is run, and the best of them counts.
"""

import math
import multiprocessing
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection
from multiprocessing.connection import Connection

import numpy as np
import torch

from .. import corpora
from ..config import RunConfig, TrainConfig
from ..corpora import cut_at
from ..devices import cores, pick_device
from ..errors import Interrupted, Stopped, UserError
from ..files import remove, to_json, write_whole
from ..interrupts import Interrupts
from ..models import ModernConfig, build, flops_per_token
from ..optim import OptimConfig
from ..plots import draw_fit, draw_frontier, draw_residuals
from ..tokenizers import CharTokenizer
from .law import Law, bootstrap, fit, require_scipy
from .trial import Trial, finished, made, trial

COMMAND = "nanogpt study scaling"
SHAPES = ((1, 1, 24), (3, 1, 32), (3, 2, 64), (5, 3, 96), (6, 3, 168), (7, 6, 288), (9, 8, 512))
"""Blocks, heads and channels, from 10 thousand parameters to 28 million, each about four times
the one before."""
PARTS = (1, 2, 4, 8, 16)
"""All of the text to learn from, a half of it, …"""
DROPOUTS = {0.0: (0.0, 16.0), 0.15: (0.5, math.inf), 0.3: (16.0, math.inf)}
"""What is tried, and from how many to how many parameters for a character."""
LARGE = 1_000_000
"""Parameters from which on rates are half as high: a large model learns fast enough with them, and
its weights move about less at the end."""
COMPILED = 5_000_000
"""Parameters from which on compiling takes less time than it saves."""
PIECE = 1_000
"""Characters, at least, that stay together when parts of the text are drawn."""


@dataclass(frozen=True)
class Grid:
    """Which models are trained on how much, and for how long at most."""

    shapes: Sequence[tuple[int, int, int]] = SHAPES
    parts: Sequence[int] = PARTS
    dropouts: Mapping[float, tuple[float, float]] = field(default_factory=lambda: DROPOUTS)
    steps: int = 2500
    batch_size: int = 64
    block_size: int = 256


@dataclass(frozen=True)
class Made:
    """A run of the study."""

    name: str
    N: int
    D: int
    dropout: float
    loss: float
    """The lowest on the validation text, in nats per character."""
    tokens: int
    """Characters trained on until then."""
    seconds: float

    @staticmethod
    def of(trial: Trial) -> "Made":
        """The run that a trial is."""
        model = trial.config.model
        assert isinstance(model, ModernConfig)
        return Made(
            trial.config.name,
            trial.parameters,
            trial.train_tokens,
            model.dropout,
            trial.val_loss,
            trial.tokens,
            trial.seconds,
        )


@dataclass(frozen=True)
class Cell:
    """A size on an amount of data: the better of its runs."""

    n_layer: int
    n_head: int
    n_embd: int
    N: int
    """Parameters."""
    D: int
    """Characters to learn from."""
    loss: float
    """The lowest on the validation text, in nats per character."""
    dropout: float
    tokens: int
    """Characters trained on until then."""
    compute: float
    """Operations until then."""
    seconds: float
    """Of training of all runs of the cell."""
    falling: bool
    """Whether its loss was lowest at the end: it would have gained from more steps."""
    curve: list[tuple[float, float]]
    """(operations, loss) on the way, evaluation by evaluation."""


def texts() -> tuple[list[str], str]:
    """What there is to learn from, in pieces; and what is measured with.

    Tiny Shakespeare's training part and all plays that it does not have, without the few characters
    that are not in it; and its validation part. Pieces end where a speech does.
    """
    tiny = corpora.load("tinyshakespeare")
    val, known = "".join(tiny.part("val")), set(tiny.text())
    rest = "".join(c for c in corpora.load("shakespeare-rest").text() if c in known)
    text, pieces, start = "".join(tiny.part("train")) + rest, [], 0
    while start < len(text):
        end = text.find("\n\n", start + PIECE) + 2
        end = end if end > 1 else len(text)
        pieces.append(text[start:end])
        start = end
    return pieces, val


def drawn(pieces: Sequence[str], part: int) -> str:
    """One of so many parts of a text: pieces from everywhere in it, in its order.

    A smaller part is contained in a larger one.
    """
    order = random.Random(0).sample(range(len(pieces)), len(pieces))
    return "".join(pieces[i] for i in sorted(order[: len(pieces) // part]))


def plan(base: RunConfig, grid: Grid) -> list[RunConfig]:
    """The runs of the grid, the longest first. Writes their texts and the tokenizer to base.out.

    base has the seed, the device and the directory.
    """
    assert base.out is not None
    out = base.out
    pieces, val = texts()
    tokenizer, runs = CharTokenizer("".join([*pieces, val])), []
    write_whole(out / "tokenizer.json", to_json(tokenizer.to_json()))
    for part in grid.parts:
        train = drawn(pieces, part)
        file = out / f"text-1-of-{part}.txt"
        if not file.exists() or file.stat().st_size != len((train + val).encode()):
            write_whole(file, (train + val).encode())
        total = len(train) + len(val)
        val_fraction = (len(val) - 0.5) / total
        assert cut_at(total, val_fraction) == len(train)
        for L, H, C in grid.shapes:
            N = 12 * L * C * C
            for dropout, (low, high) in grid.dropouts.items():
                if not low <= N / len(train) < high:
                    continue
                name = f"{L}x{C}-1-of-{part}-dropout-{dropout}"
                model = ModernConfig(L, H, C, grid.block_size, tokenizer.vocab_size, dropout)
                runs.append(
                    replace(
                        base,
                        name=name,
                        out=out / name,
                        data=str(file),
                        val_fraction=val_fraction,
                        tokenizer=str(out / "tokenizer.json"),
                        model=model,
                        optim=LARGE_OPTIM if N >= LARGE else OPTIM,
                        train=TrainConfig(
                            steps=grid.steps,
                            batch_size=grid.batch_size,
                            order="epochs",
                            eval_every=max(1, grid.steps // (25 if part < 4 else 50)),
                            eval_first=False,
                            log_every=max(1, grid.steps // 50),
                            patience=10,
                            compile=N >= COMPILED,
                        ),
                    )
                )
    return sorted(runs, key=lambda run: -flops_per_token(build(run.model)))


OPTIM = OptimConfig(
    optimizer="muon",
    lr=4e-3,
    muon_lr=0.02,
    schedule="linear",
    min_lr=4e-3,  # it does not fall
    warmup=50,
    beta2=0.95,
    weight_decay=0.3,
    grad_clip=0.0,
    ema=0.995,
)
LARGE_OPTIM = replace(OPTIM, lr=2e-3, muon_lr=0.01, min_lr=2e-3)


def run_all(
    runs: Sequence[RunConfig],
    at_a_time: int,
    told: Callable[[RunConfig, Trial, int], None],
    said: Callable[[str], None],
) -> list[Trial]:
    """What came of runs, in their order: those that are not done yet are made, several at once.

    Spread over all GPUs, at_a_time on each. told hears of every run that is done, and how many
    are; said of what went wrong. Raises Interrupted or Stopped, after which those under way are
    saved.
    """
    found = {run.name: trial for run in runs if (trial := finished(run))}
    left = [run for run in runs if run.name not in found]
    for done, run in enumerate((run for run in runs if run.name in found), 1):
        told(run, found[run.name], done)
    if left:
        for run, came in _spread(left, at_a_time, said):
            found[run.name] = came
            told(run, came, len(found))
    return [found[run.name] for run in runs]


def _spread(
    runs: Sequence[RunConfig], at_a_time: int, said: Callable[[str], None]
) -> Iterator[tuple[RunConfig, Trial]]:
    """Runs in processes of their own, each on a device: those that are done, as they get done.

    One that is killed is gone on with, twice: a study takes too long to lose it.
    """
    device = pick_device(runs[0].device)
    several = device.type == "cuda" and device.index is None
    count = torch.cuda.device_count() if several else 1
    free = [f"cuda:{i}" if several else runs[0].device for i in range(count)] * at_a_time
    threads = max(1, cores() // len(free))
    waiting, killed, working = [*runs], Counter[str](), dict[int, _Worker]()
    with Interrupts() as interrupts:
        try:
            while waiting or working:
                while waiting and free:
                    worker = _Worker(waiting.pop(0), free.pop(), threads)
                    working[worker.process.sentinel] = worker
                for sentinel in connection.wait([*working], timeout=0.2):
                    assert isinstance(sentinel, int)
                    worker = working.pop(sentinel)
                    free.append(worker.device)
                    if came := worker.result():
                        yield worker.run, came
                    elif killed[worker.run.name] == 2:
                        raise Stopped(
                            f"the process of {worker.run.name} was killed three times, for want of "
                            f"memory perhaps: the same command with --at-a-time 1 goes on with it"
                        )
                    else:
                        code = worker.process.exitcode
                        said(f"{worker.run.name} was killed (exit code {code}), and goes on.")
                        killed[worker.run.name] += 1
                        waiting.insert(0, worker.run)
                if interrupts.received:
                    left = len(waiting) + len(working)
                    raise Interrupted(interrupts.received, f"with {left} runs left", COMMAND)
        finally:
            for worker in working.values():
                worker.process.terminate()  # it saves where it is
            for worker in working.values():
                worker.process.join()


class _Worker:
    """A process that makes a run."""

    def __init__(self, run: RunConfig, device: str, threads: int) -> None:
        self.run, self.device = run, device
        spawn = multiprocessing.get_context("spawn")
        self.problem, end = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_make, args=(run, device, threads, end))
        self.process.start()
        end.close()

    def result(self) -> Trial | None:
        """What came of the run, when the process has ended; None where it was killed.

        Raises UserError or Stopped where the process did.
        """
        self.process.join()
        if self.problem.poll():
            with suppress(EOFError):
                error: UserError | Stopped = self.problem.recv()
                raise error
        return finished(self.run)


def _make(run: RunConfig, device: str, threads: int, problem: Connection) -> None:
    """Make a run, in a process of its own. That it is interrupted, its parent says."""
    assert run.out is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)  # more than there are cores would wait for each other
    try:
        trial(replace(run, device=device), COMMAND)
        for directory in ("best", "last"):  # the weights: nobody asks for them
            remove(run.out / directory)
    except Interrupted:
        pass
    except (UserError, Stopped) as error:
        problem.send(error)


def cells(trials: Sequence[Trial]) -> list[Cell]:
    """The grid: of the runs that differ in dropout alone the best, by size and data."""
    by_cell: dict[tuple[int, int], list[Trial]] = {}
    for each in trials:
        by_cell.setdefault((each.parameters, each.train_tokens), []).append(each)
    found = []
    for (N, D), several in sorted(by_cell.items()):
        best = min(several, key=lambda trial: trial.val_loss)
        model = best.config.model
        assert isinstance(model, ModernConfig)
        each_token = flops_per_token(build(model))
        found.append(
            Cell(
                n_layer=model.n_layer,
                n_head=model.n_head,
                n_embd=model.n_embd,
                N=N,
                D=D,
                loss=best.val_loss,
                dropout=model.dropout,
                tokens=best.tokens,
                compute=float(each_token) * best.tokens,
                seconds=round(sum(trial.seconds for trial in several), 3),
                falling=best.points[-1].tokens == best.tokens,
                curve=[(float(each_token) * p.tokens, p.loss) for p in best.points],
            )
        )
    return found


@dataclass(frozen=True)
class Fitted:
    """A law, and how well it holds."""

    law: Law
    bounds: dict[str, tuple[float, float]]
    """95% intervals of its numbers."""
    error: float
    """Root of the mean square of predicted over measured loss, less one."""
    held_out: list[tuple[int, float, float]]
    """(D, measured, predicted) of the largest size by the law that the smaller ones have."""


@dataclass(frozen=True)
class Size:
    """What holds back a size of model, with all the data that there is."""

    N: int
    of_size: float
    """A / N^α in nats."""
    of_data: float
    """B / D^β in nats."""
    enough: float
    """Characters with which the two would be equal."""

    @property
    def starved(self) -> bool:
        """Whether data is what it wants."""
        return self.of_data > self.of_size


@dataclass(frozen=True)
class Scaling:
    """What came of the study."""

    device: str
    runs: list[Made]
    cells: list[Cell]
    """The best run of each size on each amount of data."""
    sum: Fitted
    """With p of 1: what is missing adds up."""
    free: Fitted
    """With p as it fits."""
    sizes: list[Size]
    """By the latter."""
    frontier: list[tuple[float, float, int]]
    """(operations, lowest loss with so many, parameters of the model that has it)."""
    exponent: float
    """a, where the best size grows like operations^a."""


def conclude(trials: Sequence[Trial], bootstraps: int = 300) -> Scaling:
    """What runs of a grid say."""
    grid = cells(trials)
    most = max(cell.D for cell in grid)
    free = fitted(grid, True, bootstraps)
    law = free.law
    edge = frontier([cell for cell in grid if most == cell.D])
    return Scaling(
        device=trials[0].device,
        runs=[Made.of(trial) for trial in trials],
        cells=grid,
        sum=fitted(grid, False, bootstraps),
        free=free,
        sizes=[
            Size(n, law.of_size(n), law.of_data(most), law.enough_data(n))
            for n in sorted({cell.N for cell in grid})
        ],
        frontier=edge,
        exponent=growth(edge),
    )


def fitted(grid: Sequence[Cell], free: bool, bootstraps: int) -> Fitted:
    """The law that a grid follows, with p free or 1."""

    def numbers(some: Sequence[Cell]) -> tuple[list[float], list[float], list[float]]:
        return [c.N for c in some], [c.D for c in some], [c.loss for c in some]

    law = fit(*numbers(grid), free)
    errors = [law.loss(cell.N, cell.D) / cell.loss - 1 for cell in grid]
    largest = max(cell.N for cell in grid)
    known = fit(*numbers([cell for cell in grid if largest > cell.N]), free)
    return Fitted(
        law=law,
        bounds=bootstrap(*numbers(grid), law, bootstraps),
        error=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        held_out=[(c.D, c.loss, known.loss(c.N, c.D)) for c in grid if largest == c.N],
    )


def frontier(grid: Sequence[Cell]) -> list[tuple[float, float, int]]:
    """(operations, loss, N) of all evaluations that no run had reached with fewer operations."""
    points = sorted((C, loss, cell.N) for cell in grid for C, loss in cell.curve)
    found: list[tuple[float, float, int]] = []
    for point in points:
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def growth(edge: Sequence[tuple[float, float, int]]) -> float:
    """The slope of log N over log operations along the frontier."""
    operations, _, sizes = zip(*edge, strict=True)
    if len({*sizes}) < 2:
        return math.nan
    return float(np.polyfit(np.log(operations), np.log(sizes), 1)[0])


def study(
    base: RunConfig,
    grid: Grid,
    at_a_time: int,
    told: Callable[[RunConfig, Trial, int, int], None],
    said: Callable[[str], None],
) -> Scaling:
    """Make every run of the grid that is not there yet, below base.out, and conclude.

    told hears of each run that is done, how many are, and of how many; said of what went wrong.
    Writes scaling.json, scaling.md, fit.svg, residuals.svg and frontier.svg. Raises UserError,
    Stopped or Interrupted.
    """
    assert base.out is not None
    require_scipy()
    out = made(base.out)
    runs = plan(base, grid)
    trials = run_all(runs, at_a_time, lambda run, came, n: told(run, came, n, len(runs)), said)
    said("Fitting, to all of them and to many draws of them: half a minute.")
    found = conclude(trials)
    write_whole(out / "scaling.json", to_json(asdict(found)))
    write_whole(out / "scaling.md", tables(found).encode())
    measured = [(float(c.N), float(c.D), c.loss) for c in found.cells]
    draw_fit(out / "fit.svg", measured, found.free.law.loss)
    draw_residuals(out / "residuals.svg", measured, found.free.law.loss)
    most = max(cell.D for cell in found.cells)
    curves = {cell.N: cell.curve for cell in found.cells if most == cell.D}
    draw_frontier(out / "frontier.svg", curves, [(C, loss) for C, loss, _ in found.frontier])
    return found


def tables(found: Scaling) -> str:
    """The study in Markdown: losses, the law, who is starved."""
    amounts = sorted({cell.D for cell in found.cells})
    by_cell = {(cell.N, cell.D): cell for cell in found.cells}
    lines = [
        "| parameters | " + " | ".join(f"{D:,} characters" for D in amounts) + " |",
        "| --- |" + " --- |" * len(amounts),
    ]
    for size in found.sizes:
        losses = [by_cell.get((size.N, D)) for D in amounts]
        shown = " | ".join(
            f"{cell.loss:.4f}{'*' if cell.falling else ''}" if cell else "" for cell in losses
        )
        lines.append(f"| {size.N:,} | {shown} |")
    lines += ["", "\\* still falling when the steps were used up.", ""]
    lines += ["| | p of 1: a sum | 95% | p free | 95% |", "| --- | --- | --- | --- | --- |"]
    for name, sign in (*zip(("E", "A", "alpha", "B", "beta", "p"), "EAαBβp", strict=True),):
        shown = " | ".join(_number(one, name) for one in (found.sum, found.free))
        lines.append(f"| {sign} | {shown} |")
    lines += [
        f"| error | {found.sum.error:.2%} | | {found.free.error:.2%} | |",
        "",
        "| parameters | A / N^α | B / D^β, with all text | wants | text enough |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size in found.sizes:
        wants = "text" if size.starved else "parameters"
        lines.append(
            f"| {size.N:,} | {size.of_size:.3f} | {size.of_data:.3f} | {wants} "
            f"| {size.enough:,.0f} |"
        )
    lines += [
        "",
        "| text | the largest size, measured | predicted from the smaller, a sum | p free |",
        "| --- | --- | --- | --- |",
    ]
    for (D, L, a), (*_, b) in zip(found.sum.held_out, found.free.held_out, strict=True):
        lines.append(f"| {D:,} | {L:.4f} | {a:.4f} | {b:.4f} |")
    lines += [
        "",
        f"Along the frontier the best size grows like operations^{found.exponent:.2f}. "
        f"{found.device}.",
    ]
    return "\n".join(lines) + "\n"


def _number(fitted: Fitted, name: str) -> str:
    """A number of a law, and its interval if it was fitted, as two cells of a table."""
    value = f"{getattr(fitted.law, name):.3g}"
    if name not in fitted.bounds:
        return f"{value} |"
    low, high = fitted.bounds[name]
    return f"{value} | {low:.3g} to {high:.3g}"
