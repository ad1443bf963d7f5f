"""The distillation study: what models gain if they learn from the probabilities of other models.

Generation 0 consists of the teachers, which learn without other models. The models of each later
generation learn from the text, from all full-size models of the previous generation, from a text
that these models generate, and from counts of n-grams. In the last generation, smaller models learn
from the same teachers.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import torch

from ..data import Data, Split
from ..evaluate import evaluate
from ..kneser_ney_tables import MAX_VOCABULARY
from ..models import Model, ModelConfig, ModernConfig
from ..models.ensemble import Ensemble
from ..runs.checkpoint import load_checkpoint
from ..runs.config import RunConfig
from ..runs.presets import get_preset
from ..runs.run import load_run_text
from ..system.devices import pick_device
from ..system.files import dump_json, path_exists, write_output
from ..text.corpora import load_corpus
from ..text.encoding import get_tokenizer
from ..text.readers import no_progress
from .plots import draw_generations
from .processes import run_all
from .transfer import generate_transfer_text, name_transfer_text
from .trial import Trial, make_directory, stop_on_disk_error

DISTILLATION_COMMAND = "nanogpt study distillation"
TRAIN_TOKENS = 100_000
"""Tokens of the training split on which the loss of each group is measured."""
SMALLER_MODELS = 3
"""Maximum number of students of each smaller size."""


@dataclass(frozen=True)
class DistillationConfig:
    """The models of the study."""

    teacher: RunConfig
    """The settings of the teachers."""
    student: RunConfig
    """The settings of the students, except `teachers`."""
    smaller: Sequence[tuple[str, ModelConfig]]
    """The names and the models of the smaller students."""
    texts: int
    """Number of texts that each teacher generates."""
    tokens: int
    """Length of each generated text in tokens."""


def make_student(teacher: RunConfig, dropout: float, decay: float) -> RunConfig:
    """Return the settings of a student, except the paths of its teachers and of the transfer text.

    It gets less dropout and less weight decay than its teacher, because its soft targets and the
    transfer text already limit overfitting.
    """
    return replace(
        teacher,
        model=replace(teacher.model, dropout=dropout),  # type: ignore[arg-type]
        optim=replace(teacher.optim, weight_decay=decay, ema=0.99),
        train=replace(
            teacher.train,
            teacher_weight=0.75,
            ngram_weight=0.15,
            transfer_share=0.5,
            mean_teacher=0.0,
        ),
    )


def _configure(is_cuda: bool) -> DistillationConfig:
    if is_cuda:
        teacher = get_preset("best").config
        student = make_student(teacher, dropout=0.05, decay=0.2)
        assert isinstance(student.model, ModernConfig)
        smaller = [
            ("half", replace(student.model, n_embd=180)),
            ("quarter", replace(student.model, n_embd=128)),
        ]
        return DistillationConfig(teacher, student, smaller, texts=1024, tokens=4096)
    fast = get_preset("tiny-fast").config
    model = ModernConfig(n_layer=4, n_head=2, n_embd=128, block_size=64, dropout=0.1)
    # On a CPU, the models are small.
    teacher = replace(
        fast,
        model=model,
        optim=replace(fast.optim, muon_lr=0.05, momentum=0.85, weight_decay=0.3, ema=0.99),
        train=replace(fast.train, steps=600, eval_every=200),
    )
    student = make_student(teacher, dropout=0.0, decay=0.1)
    small = replace(model, n_embd=92, dropout=0.0)
    smaller = [("half", small), ("quarter", replace(small, n_embd=64))]
    return DistillationConfig(teacher, student, smaller, texts=64, tokens=1024)


@dataclass(frozen=True)
class Group:
    """The results of models that differ only in their seed."""

    name: str
    teachers: int
    """Number of models that each model of the group learns from, besides the text."""
    parameters: int
    losses: list[float]
    """Lowest validation loss of each model, in nats per token."""
    last_losses: list[float]
    """Validation loss of each model at its last evaluation."""
    ensemble_loss: float
    """Validation loss of the mean of the models' probabilities."""
    train_loss: float
    """Mean loss of the models on the first TRAIN_TOKENS tokens of the training split."""
    agreement: float | None
    """Fraction of the tokens of the validation split for which two models of the group have the
    same most likely token, on average over all pairs of models; None for a single model."""
    seconds: float
    """Total training time of the group, added up over its models."""

    @property
    def mean(self) -> float:
        """The mean of the lowest validation losses."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Distillation:
    """The result of the study."""

    device: str
    budget: str
    """Steps, batch size and block size."""
    groups: list[Group]


def get_vocab_size(config: RunConfig) -> int:
    """Return the size of the vocabulary of a run's tokenizer."""
    corpus = load_corpus(config.data, config.column, config.separator)
    return get_tokenizer(config.tokenizer, corpus, config.val_fraction, no_progress).vocab_size


def set_steps(config: RunConfig, steps: int | None) -> RunConfig:
    """Return `config` with another number of steps, evaluated as often as before."""
    train = config.train
    if steps is None:
        return config
    eval_every = max(1, train.eval_every * steps // train.steps)
    return replace(config, train=replace(train, steps=steps, eval_every=eval_every))


def plan_group(
    base: RunConfig,
    name: str,
    seeds: Sequence[int],
    teachers: Sequence[RunConfig] = (),
    transfer: str | None = None,
) -> list[RunConfig]:
    """Return the runs of a group: one for each seed, in subdirectories of base.out."""
    assert base.out is not None
    return [
        replace(
            base,
            name=f"{name}-{seed}",
            out=base.out / f"{name}-{seed}",
            seed=seed,
            teachers=[teacher.out for teacher in teachers],  # type: ignore[misc]
            transfer=transfer,
        )
        for seed in seeds
    ]


def run_distillation(
    base: RunConfig,
    counts: tuple[int, int, int],
    at_a_time: int,
    steps: int | None,
    on_trial: Callable[[RunConfig, Trial], None],
    on_group: Callable[[Group], None],
    on_message: Callable[[str], None],
    config: DistillationConfig | None = None,
) -> Distillation:
    """Train all generations, and call `on_group` with the result of each group.

    `base` has the settings that all runs share: the text, out, the seed and the device. `counts`
    has three numbers: the teachers, the students of a generation, the generations of students.
    `steps`, if given, replaces the number of steps of every model. `config` is for tests. Models
    that an earlier call finished are not trained again. Writes distillation.json, distillation.md
    and distillation.svg. Raises UserError, Stopped or Interrupted.
    """
    assert base.out is not None
    out, device = make_directory(base.out), pick_device(base.device)
    config = config or _configure(device.type == "cuda")
    n_teachers, n_students, generations = counts
    shared = {
        name: getattr(base, name)
        for name in ("data", "column", "separator", "val_fraction", "device", "out")
    }
    teacher, student = (
        set_steps(replace(each, **shared), steps) for each in (config.teacher, config.student)
    )
    if student.train.ngram_weight and get_vocab_size(student) > MAX_VOCABULARY:
        student = replace(student, train=replace(student.train, ngram_weight=0.0))
    groups: list[Group] = []
    previous: list[RunConfig] = []
    transfer: str | None = None
    for generation in range(generations + 1):
        first_seed = base.seed + 100 * generation
        seeds = range(first_seed, first_seed + (n_students if generation else n_teachers))
        if generation:
            directories = [run.out for run in previous if run.out is not None]
            file = out / name_transfer_text(directories, config.texts, config.tokens, first_seed)
            transfer = str(file)
            if not path_exists(file):
                on_message(f"generating {file.name}")
                text = generate_transfer_text(
                    directories, config.texts, config.tokens, first_seed, device
                )
                with stop_on_disk_error(out):
                    write_output(file, text.encode())
        kinds = {f"student-{generation}": student} if generation else {"teacher": teacher}
        if generation == generations:
            kinds |= {name: replace(student, model=model) for name, model in config.smaller}
        planned = {
            name: plan_group(
                kind,
                name,
                seeds if kind in (teacher, student) else seeds[:SMALLER_MODELS],
                previous,
                transfer,
            )
            for name, kind in kinds.items()
        }
        runs = [run for group in planned.values() for run in group]
        trials = run_all(
            runs,
            at_a_time,
            lambda _: False,
            DISTILLATION_COMMAND,
            lambda run, trial, _: on_trial(run, trial),
            on_message,
            unneeded=("last",),
        )
        by_name = {run.name: trial for run, trial in zip(runs, trials, strict=True)}
        for name, group in planned.items():
            groups.append(measure_group(name, group, [by_name[r.name] for r in group], device))
            on_group(groups[-1])
        previous = next(iter(planned.values()))
    settings, T = student.train, student.model.block_size
    result = Distillation(
        device=trials[0].device,
        budget=f"{settings.steps:,} steps of {settings.batch_size} × {T} tokens",
        groups=groups,
    )
    with stop_on_disk_error(out):
        write_output(out / "distillation.json", dump_json(asdict(result)))
        write_output(out / "distillation.md", format_table(result).encode())
        draw_generations(
            out / "distillation.svg",
            [(group.name, group.losses, group.ensemble_loss) for group in groups],
        )
    return result


def measure_group(
    name: str, runs: Sequence[RunConfig], trials: Sequence[Trial], device: torch.device
) -> Group:
    """Measure the ensemble of a group, and the mean loss on a part of the training text."""
    directories = [run.out for run in runs if run.out is not None]
    checkpoints = [load_checkpoint(directory / "best", device) for directory in directories]
    corpus, val_fraction = load_run_text(directories[0])
    data = Data(corpus, checkpoints[0].tokenizer, device, val_fraction)
    models = [checkpoint.model for checkpoint in checkpoints]
    part = Split(data.splits["train"].tokens[: TRAIN_TOKENS + 1], device)
    return Group(
        name=name,
        teachers=len(runs[0].teachers),
        parameters=trials[0].parameters,
        losses=[trial.val_loss for trial in trials],
        last_losses=[trial.points[-1].loss for trial in trials],
        ensemble_loss=evaluate(Ensemble(models), data.splits["val"]).loss,
        train_loss=sum(evaluate(model, part).loss for model in models) / len(models),
        agreement=measure_agreement(models, data.splits["val"]),
        seconds=sum(trial.seconds for trial in trials),
    )


@torch.no_grad()
def measure_agreement(models: Sequence[Model], split: Split) -> float | None:
    """Return how often two models have the same most likely token (see Group.agreement)."""
    predicted = []
    for model in models:
        model.eval()
        windows = split.windows(32, model.config.block_size)
        predicted.append(torch.cat([model(x).argmax(dim=-1).flatten() for x, _ in windows]))
    pairs = [(a == b).float().mean().item() for a, b in combinations(predicted, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def format_table(result: Distillation) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| models | teachers | parameters | seeds | validation loss: mean (range) | last step "
        "| ensemble | agreement | training text | training time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in result.groups:
        last = sum(group.last_losses) / len(group.last_losses)
        agreement = "–" if group.agreement is None else f"{group.agreement:.1%}"
        lines.append(
            f"| {group.name} | {group.teachers or '–'} | {group.parameters:,} "
            f"| {len(group.losses)} | {group.mean:.4f} ({min(group.losses):.4f} to "
            f"{max(group.losses):.4f}) | {last:.4f} | {group.ensemble_loss:.4f} | {agreement} "
            f"| {group.train_loss:.4f} | {group.seconds:,.0f} s |"
        )
    return "\n".join(lines) + f"\n\n{result.budget}, {result.device}\n"
