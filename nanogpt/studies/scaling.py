"""What size and data buy: a law L(N, D) of parameters and text, measured on a grid of both.

N are the parameters, D the characters of text that there are to learn from, E what would be left of
the loss with endless both (Kaplan et al. 2020, arXiv:2001.08361, has the question; Hoffmann et al.
2022, arXiv:2203.15556, section 3.3, a formula and how it is fitted). Every model is trained until
it gets no better, at a constant learning rate, and measured by the average of its weights, which
stands for a rate that falls (Hägele et al. 2024, arXiv:2405.18392). How much a model has to be held
back from learning the text by heart goes with how many parameters it has for a character, and how
often it reads each. What looks best, and what is near that, is run, and the best of them counts.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from ..models import ModernConfig, build, flops_per_token
from ..optim import OptimConfig
from ..runs.config import RunConfig, TrainConfig
from ..system.files import dump_json, write_atomically
from ..text import corpora
from ..text.corpora import cut_at
from ..text.tokenizers import CharTokenizer
from .findings import ScalingResult, analyse_trials, format_tables
from .law import require_scipy
from .plots import draw_fit, draw_frontier, draw_residuals
from .processes import run_all
from .trial import Trial, make_directory, stop_on_disk_error

SCALING_COMMAND = "nanogpt study scaling"
SHAPES = ((1, 1, 24), (3, 1, 32), (3, 2, 64), (5, 3, 96), (6, 3, 168), (7, 6, 288), (9, 8, 512))
"""Blocks, heads and channels, from 10 thousand parameters to 28 million, each about four times
the one before."""
PARTS = (1, 2, 4, 8, 16)
"""All of the text to learn from, a half of it, …"""
LARGE_MODEL = 1_000_000
"""Parameters from which on a recipe's lower rates hold: so large a model learns fast enough with
them, and its weights move about less at the end."""
MIN_COMPILED = 5_000_000
"""Parameters from which on compiling takes less time than it saves."""
WHOLE_GPU = 20_000_000
"""Parameters from which on a model has a GPU for itself: it keeps that busy, and beside others it
crashes now and then (docs/log.md)."""
MIN_PIECE = 1_000
"""Characters, at least, that stay together when parts of the text are drawn."""


@dataclass(frozen=True)
class Recipe:
    """How a model is kept from learning the text by heart, and where that is tried."""

    dropout: float
    weight_decay: float
    rate: float
    """For large models, times that for small ones."""
    low: float
    """Tried from so many parameters for a character, times epochs, …"""
    high: float
    """… to so many."""


RECIPES = {
    "free": Recipe(0.0, 0.3, 0.5, 0, 100),
    "light": Recipe(0.15, 0.3, 0.5, 60, 300),
    "medium": Recipe(0.15, 0.3, 1.0, 150, 1000),
    "strong": Recipe(0.3, 0.6, 1.0, 250, 4000),
    "stronger": Recipe(0.3, 1.2, 1.0, 1500, 10_000),
    "strongest": Recipe(0.3, 2.4, 1.0, 10_000, math.inf),
}


@dataclass(frozen=True)
class Grid:
    """Which models are trained on how much, and for how long at most."""

    shapes: Sequence[tuple[int, int, int]] = SHAPES
    parts: Sequence[int] = PARTS
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: RECIPES)
    steps: int = 2500
    batch_size: int = 64
    block_size: int = 256


def load_texts() -> tuple[list[str], str]:
    """What there is to learn from, in pieces; and what is measured with.

    Tiny Shakespeare's training part and all plays that it does not have, without the few characters
    that are not in it; and its validation part. Pieces end where a speech does.
    """
    tiny = corpora.load_corpus("tinyshakespeare")
    val, known = "".join(tiny.part("val")), set(tiny.text())
    rest = "".join(c for c in corpora.load_corpus("shakespeare-rest").text() if c in known)
    text, pieces, start = "".join(tiny.part("train")) + rest, [], 0
    while start < len(text):
        end = text.find("\n\n", start + MIN_PIECE) + 2
        end = end if end > 1 else len(text)
        pieces.append(text[start:end])
        start = end
    return pieces, val


def select_part(pieces: Sequence[str], part: int) -> str:
    """One of so many parts of a text: pieces from everywhere in it, in its order.

    A smaller part is contained in a larger one.
    """
    order = random.Random(0).sample(range(len(pieces)), len(pieces))
    return "".join(pieces[i] for i in sorted(order[: len(pieces) // part]))


def plan_runs(base: RunConfig, grid: Grid) -> list[RunConfig]:
    """The runs of the grid, the longest first. Writes their texts and the tokenizer to base.out.

    base has the seed, the device and the directory.
    """
    assert base.out is not None
    out = base.out
    pieces, val = load_texts()
    tokenizer, runs = CharTokenizer("".join([*pieces, val])), []
    write_atomically(out / "tokenizer.json", dump_json(tokenizer.to_json()))
    for part in grid.parts:
        train = select_part(pieces, part)
        file = out / f"text-1-of-{part}.txt"
        if not file.exists() or file.stat().st_size != len((train + val).encode()):
            write_atomically(file, (train + val).encode())
        total = len(train) + len(val)
        val_fraction = (len(val) - 0.5) / total
        assert cut_at(total, val_fraction) == len(train)
        epochs = grid.steps * grid.batch_size * grid.block_size / len(train)
        for L, H, C in grid.shapes:
            N, tried = 12 * L * C * C, set()
            for recipe_name, recipe in grid.recipes.items():
                setting = recipe.dropout, _make_optim(N, recipe)
                if not recipe.low <= N / len(train) * epochs < recipe.high or setting in tried:
                    continue
                tried.add(setting)
                dropout, optim = setting
                name = f"{L}x{C}-1-of-{part}-{recipe_name}"
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
                        optim=optim,
                        train=TrainConfig(
                            steps=grid.steps,
                            batch_size=grid.batch_size,
                            order="epochs",
                            eval_every=max(1, grid.steps // (25 if part < 4 else 50)),
                            eval_first=False,
                            log_every=max(1, grid.steps // 50),
                            patience=10,
                            compile=N >= MIN_COMPILED,
                        ),
                    )
                )
    return sorted(runs, key=lambda run: -flops_per_token(build(run.model)))


def _make_optim(N: int, recipe: Recipe) -> OptimConfig:
    rate = recipe.rate if N >= LARGE_MODEL else 1.0
    return OptimConfig(
        optimizer="muon",
        lr=4e-3 * rate,
        muon_lr=0.02 * rate,
        schedule="linear",
        min_lr=4e-3 * rate,  # it does not fall
        warmup=50,
        beta2=0.95,
        weight_decay=recipe.weight_decay,
        grad_clip=0.0,
        ema=0.995,
    )


def _needs_whole_gpu(run: RunConfig) -> bool:
    model = run.model
    assert isinstance(model, ModernConfig)
    return 12 * model.n_layer * model.n_embd**2 >= WHOLE_GPU


def run_scaling(
    base: RunConfig,
    grid: Grid,
    at_a_time: int,
    on_trial: Callable[[RunConfig, Trial, int, int], None],
    on_message: Callable[[str], None],
) -> ScalingResult:
    """Make every run of the grid that is not there yet, below base.out, and conclude.

    told hears of each run that is done, how many are, and of how many; said of what went wrong.
    Writes scaling.json, scaling.md, fit.svg, residuals.svg and frontier.svg. Raises UserError,
    Stopped or Interrupted.
    """
    assert base.out is not None
    require_scipy()
    out = make_directory(base.out)
    with stop_on_disk_error(out):
        runs = plan_runs(base, grid)
    trials = run_all(
        runs,
        at_a_time,
        _needs_whole_gpu,
        SCALING_COMMAND,
        lambda run, came, n: on_trial(run, came, n, len(runs)),
        on_message,
    )
    on_message("Fitting, to all of them and to many draws of them: half a minute.")
    found = analyse_trials(trials)
    measured = [(float(c.N), float(c.D), c.loss) for c in found.cells]
    edge = [(C, loss) for C, loss, _ in found.frontier]
    with stop_on_disk_error(out):
        write_atomically(out / "scaling.json", dump_json(asdict(found)))
        write_atomically(out / "scaling.md", format_tables(found).encode())
        draw_fit(out / "fit.svg", measured, found.free.law.loss)
        draw_residuals(out / "residuals.svg", measured, found.free.law.loss)
        draw_frontier(out / "frontier.svg", dict(found.curves), edge)
    return found
