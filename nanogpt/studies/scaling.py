"""The scaling study: how the loss depends on model size and on the amount of training text.

It measures L(N, D), the loss of a model with N parameters that is trained on D characters, for a
grid of N and D. Then it fits a law to the losses. The question is from Kaplan et al. 2020
(arXiv:2001.08361). The formula and the method to fit it are from Hoffmann et al. 2022
(arXiv:2203.15556, section 3.3).

Each model trains at a constant learning rate until its validation loss stops falling or it has
taken Grid.steps steps. The averaged weights of the model are also evaluated, because averaging
replaces a decay of the learning rate (Hägele et al. 2024, arXiv:2405.18392). A model needs more
regularisation if it has more parameters per character, or trains for more epochs. So for each model
and text, the study multiplies the parameters per character by the number of epochs. (Here, only the
parameters in the blocks are counted.) This product determines which recipes of regularisation the
study tries. For each model and text, the result is the run with the lowest validation loss.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from ..models import ModernConfig, build, flops_per_token
from ..optim import OptimConfig
from ..runs.config import RunConfig, TrainConfig
from ..system.files import dump_json, write_output
from ..text import corpora
from ..text.corpora import count_training_characters
from ..text.tokenizers import CharTokenizer
from .findings import ScalingResult, analyse_trials, format_tables
from .law import require_scipy
from .plots import draw_fit, draw_frontier, draw_residuals
from .processes import run_all
from .trial import Trial, make_directory, stop_on_disk_error

SCALING_COMMAND = "nanogpt study scaling"
SHAPES = ((1, 1, 24), (3, 1, 32), (3, 2, 64), (5, 3, 96), (6, 3, 168), (7, 6, 288), (9, 8, 512))
"""Blocks, heads and channels of each model. The models have 10 thousand to 28 million parameters;
each model is about four times as large as the previous one."""
PARTS = (1, 2, 4, 8, 16)
"""The amounts of text: 1 is all of the training text, 2 is one half, 4 is one quarter, …"""
LARGE_MODEL = 1_000_000
"""A recipe may use lower learning rates for models with at least this many parameters in their
blocks. With lower rates, these models still learn fast enough, and their weights fluctuate less at
the end."""
MIN_COMPILED = 5_000_000
"""Minimum number of parameters in the blocks of a model for which compiling saves time."""
WHOLE_GPU = 20_000_000
"""A model with at least this many parameters in its blocks does not share its GPU: it keeps the GPU
busy, and it sometimes crashes if other models train on the same GPU (docs/log/studies.md)."""
MIN_PASSAGE = 1_000
"""Minimum length of a passage, in characters; the last passage may be shorter. A part of the text
consists of randomly selected passages."""


@dataclass(frozen=True)
class Recipe:
    """Regularisation and learning rates, and the range of models and texts that they are for."""

    dropout: float
    weight_decay: float
    rate: float
    """Factor for the learning rates of large models (see LARGE_MODEL)."""
    low: float
    """The recipe is tried if parameters per character × epochs is at least this value."""
    high: float
    """The recipe is tried if parameters per character × epochs is less than this value."""


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
    """The models, amounts of text, recipes, steps, batch size and block size of the study."""

    shapes: Sequence[tuple[int, int, int]] = SHAPES
    parts: Sequence[int] = PARTS
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: RECIPES)
    steps: int = 2500
    batch_size: int = 64
    block_size: int = 256


def load_texts() -> tuple[list[str], str]:
    """Return the training text in passages, and the validation text.

    The training text is the training split of Tiny Shakespeare, followed by all plays that are not
    in Tiny Shakespeare. These plays contain a few letters and symbols that Tiny Shakespeare does
    not contain; this function removes them. The validation text is the validation split of Tiny
    Shakespeare. Each passage ends at the end of a speech.
    """
    tiny = corpora.load_corpus("tinyshakespeare")
    val, alphabet = "".join(tiny.read_split("val")), set(tiny.text())
    rest = "".join(c for c in corpora.load_corpus("shakespeare-rest").text() if c in alphabet)
    text, passages, start = "".join(tiny.read_split("train")) + rest, [], 0
    while start < len(text):
        end = text.find("\n\n", start + MIN_PASSAGE) + 2
        end = end if end > 1 else len(text)
        passages.append(text[start:end])
        start = end
    return passages, val


def select_part(passages: Sequence[str], part: int) -> str:
    """Return the fraction 1 / `part` of a text: random passages, in their original order.

    A larger fraction contains all passages of a smaller fraction.
    """
    order = random.Random(0).sample(range(len(passages)), len(passages))
    return "".join(passages[i] for i in sorted(order[: len(passages) // part]))


def plan_runs(base: RunConfig, grid: Grid) -> list[RunConfig]:
    """Return the runs of the grid, large models first; write texts and a tokenizer to base.out.

    `base` contains the seed, the device and the directory of the study.
    """
    assert base.out is not None
    out = base.out
    passages, val = load_texts()
    tokenizer, runs = CharTokenizer("".join([*passages, val])), []
    write_output(out / "tokenizer.json", dump_json(tokenizer.to_json()))
    for part in grid.parts:
        train = select_part(passages, part)
        file = out / f"text-1-of-{part}.txt"
        if not file.exists() or file.stat().st_size != len((train + val).encode()):
            write_output(file, (train + val).encode())
        total = len(train) + len(val)
        val_fraction = (len(val) - 0.5) / total
        assert count_training_characters(total, val_fraction) == len(train)
        epochs = grid.steps * grid.batch_size * grid.block_size / len(train)
        for L, H, C in grid.shapes:
            N, tried = _count_block_parameters(L, C), set()
            for recipe_name, recipe in grid.recipes.items():
                setting = recipe.dropout, _make_optim(N, recipe)
                in_range = recipe.low <= N / len(train) * epochs < recipe.high
                if not in_range or setting in tried:
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


def _count_block_parameters(L: int, C: int) -> int:
    """Count the parameters of L blocks: each has 4 C² in attention and 8 C² in feed-forward."""
    return 12 * L * C * C


def _make_optim(N: int, recipe: Recipe) -> OptimConfig:
    """Return the optimizer settings of a recipe for a model with N parameters in its blocks."""
    rate = recipe.rate if N >= LARGE_MODEL else 1.0
    return OptimConfig(
        optimizer="muon",
        lr=4e-3 * rate,
        muon_lr=0.02 * rate,
        schedule="linear",
        min_lr=4e-3 * rate,  # equal to lr, so the rate is constant after the warm-up
        warmup=50,
        beta2=0.95,
        weight_decay=recipe.weight_decay,
        grad_clip=0.0,
        ema=0.995,
    )


def _needs_whole_gpu(run: RunConfig) -> bool:
    """Return whether the model of a run is so large that it must not share its GPU."""
    model = run.model
    assert isinstance(model, ModernConfig)
    return _count_block_parameters(model.n_layer, model.n_embd) >= WHOLE_GPU


def run_scaling(
    base: RunConfig,
    grid: Grid,
    at_a_time: int,
    on_trial: Callable[[RunConfig, Trial, int, int], None],
    on_message: Callable[[str], None],
) -> ScalingResult:
    """Train the unfinished runs of the grid in subdirectories of base.out, and fit the laws.

    Calls `on_trial` with each run, its result, the number of finished runs and the number of all
    runs. Calls `on_message` with messages for the user. Writes scaling.json, scaling.md, fit.svg,
    residuals.svg and frontier.svg. Raises UserError, Stopped or Interrupted.
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
        lambda run, trial, done: on_trial(run, trial, done, len(runs)),
        on_message,
    )
    on_message("Fitting the laws and their bootstrap intervals takes about half a minute.")
    result = analyse_trials(trials)
    measured = [(float(cell.N), float(cell.D), cell.loss) for cell in result.cells]
    frontier = [(flops, loss) for flops, loss, _ in result.frontier]
    with stop_on_disk_error(out):
        write_output(out / "scaling.json", dump_json(asdict(result)))
        write_output(out / "scaling.md", format_tables(result).encode())
        draw_fit(out / "fit.svg", measured, result.free.law.loss)
        draw_residuals(out / "residuals.svg", measured, result.free.law.loss)
        draw_frontier(out / "frontier.svg", dict(result.curves), frontier)
    return result
