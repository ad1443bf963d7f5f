"""The settings of a run. The docstring of each field is its help text on the command line."""

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import models
from ..data import OrderName
from ..errors import UserError
from ..models import BigramConfig, GPTConfig, ModelConfig, PlainConfig
from ..optim import OptimConfig
from ..system.devices import TrainingPrecision
from ..system.schema import convert_fields
from ..text import corpora
from ..text.readers import is_encodable
from .history import plan_snapshots

STEPS_AHEAD = 100
"""Maximum number of steps that are prepared and taken before the host reads their results."""

SMALLEST_FLOAT8 = 400
"""Smallest K N / (K + N) of a linear layer in float8, for K inputs and N outputs. It is an
estimate from measurements of a few layers."""


def is_float8_layer(K: int, N: int) -> bool:
    """Return whether a run in float8 has a linear layer with K inputs and N outputs in float8.

    Small layers are faster in bfloat16: the time that faster products save grows with K N, but the
    time of the conversions between data types grows with K + N (docs/log/float8.md).
    """
    is_large = K * N >= SMALLEST_FLOAT8 * (K + N)
    return is_large and K % 16 == N % 16 == 0  # the GPU multiplies tiles of 16 × 16 values


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training steps, the batches, the evaluations and the snapshots."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Blocks in the batch of each optimizer step."""
    accumulation: int = 1
    """Process each batch in this many equal parts, so that the step needs less memory. Apart from
    rounding and dropout, the result is the same."""
    recompute: bool = False
    """Store only the input of each block of the model, and compute its other activations again in
    the backward pass. A step then needs less memory and about a third more operations."""
    shard: bool = False
    """Divide the weights, gradients and optimizer states between the processes (FSDP2). Use this if
    a model is too large for one GPU. It does not work with mean_teacher."""
    order: OrderName = "random"
    """random: blocks start at random positions in the text. epochs: in every epoch, the text is cut
    into blocks, and each block is used once, in random order."""
    eval_every: int = 250
    """Steps between evaluations on the full validation split. A checkpoint is saved before each
    evaluation."""
    eval_first: bool = True
    """Also evaluate before the first step."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a lower validation loss."""
    history: int = 0
    """Number of snapshots of the weights to save in the directory history/ of the run: one before
    the first step, the others at steps whose logarithms are evenly spaced, up to the last step."""
    teacher_weight: float = 0.9
    """Weight of the cross-entropy with the mean probabilities of the teachers. The cross-entropy
    with the text has the rest of the weight."""
    teacher_temperature: float = 1.0
    """Temperature of the teachers and of the model in the cross-entropy with the teachers."""
    transfer_share: float = 0.5
    """Share of the blocks in each batch that come from the transfer text."""
    ngram_weight: float = 0.0
    """Weight of the cross-entropy with the probabilities of smoothed n-grams, which are counted in
    the training split. Needs a vocabulary of at most 256 tokens. 0 turns this off."""
    mean_teacher: float = 0.0
    """Weight of the cross-entropy with the probabilities of the averaged weights. 0 turns this
    off."""
    stop_at_val_loss: float | None = None
    """Stop at the first evaluation with at most this validation loss, in nats per token."""
    compile: bool = True
    """On a CUDA device, compile the blocks of the model, its output layer and the cross-entropy."""
    cuda_graph: bool = True
    """On a CUDA device, capture a step as a CUDA graph, and replay the graph for each later step.
    Not used with float16, with shard, or with recompute and dropout."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "eval_every", "log_every"):
            if not 1 <= (value := getattr(self, name)) < 2**31:
                raise ValueError(f"{name} is {value}: it must be at least 1 and less than 2**31")
        if not 0 <= self.history <= 10_000:
            raise ValueError(f"history is {self.history}: it must be between 0 and 10,000")
        if not 0 < self.teacher_weight <= 1:
            value = self.teacher_weight
            raise ValueError(f"teacher_weight is {value}: it must be more than 0 and at most 1")
        if not 0 < self.teacher_temperature < math.inf:
            value = self.teacher_temperature
            raise ValueError(f"teacher_temperature is {value}: it must be more than 0")
        for name in ("mean_teacher", "ngram_weight"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}: it must be at least 0 and less than 1")
        if not 0 < self.transfer_share < 1:
            value = self.transfer_share
            raise ValueError(f"transfer_share is {value}: it must be more than 0 and less than 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}: it must be at least 1, or None")
        if self.stop_at_val_loss is not None and not math.isfinite(self.stop_at_val_loss):
            raise ValueError(
                f"stop_at_val_loss is {self.stop_at_val_loss}: it must be a finite number, or None"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}: it must divide batch_size {self.batch_size}"
            )

    def evaluates_at(self, step: int) -> bool:
        """Return whether the model is evaluated after `step` steps."""
        is_skipped = step == 0 and not self.eval_first
        return step == self.steps or (step % self.eval_every == 0 and not is_skipped)

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps at which a snapshot of the weights is saved."""
        return plan_snapshots(self.steps, self.history)

    def steps_until_event(self, step: int) -> int:
        """Return the number of steps until the next event, but at most STEPS_AHEAD.

        The events are log lines, evaluations, snapshots and the end of the run.
        """
        intervals = self.eval_every, self.log_every, STEPS_AHEAD
        next_steps = [interval - step % interval for interval in intervals]
        later = bisect_right(self.snapshot_steps, step)
        next_steps += [snapshot - step for snapshot in self.snapshot_steps[later : later + 1]]
        return min(self.steps - step, *next_steps)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    name: str = "gpt"
    """Name of the run. Its directory is runs/NAME, or the directory given with --out."""
    data: str = "tinyshakespeare"
    """The text: a corpus (tinyshakespeare, shakespeare or shakespeare-rest); a file, a directory or
    a glob pattern (plain text, .jsonl or .parquet); a URL, with #sha256=HASH at its end to check
    the text; hf:NAME or hf:NAME:CONFIG for a dataset of the Hugging Face Hub; a hyphen (-) for
    standard input; or a directory with train.bin and val.bin from nanoGPT."""
    column: str = "text"
    """Name of the column with the text, in datasets (hf:) and in .jsonl and .parquet files."""
    separator: str = "\n\n"
    """Text inserted between documents: between files, or between the rows of datasets (hf:) and of
    .jsonl and .parquet files."""
    val_fraction: float = 0.1
    """Fraction of the text, taken from its end, for validation. Use a smaller fraction for a
    large text: each evaluation reads the whole validation split."""
    tokenizer: str = "char"
    """char, byte, gpt2, bpe, bpe:N for a vocabulary of N tokens; the path of a Hugging Face
    tokenizer.json; or a run, to use its tokenizer."""
    start_from: Path | None = None
    """A run: begin with its best weights, and with its model and tokenizer, instead of random
    weights. This continues its training, for example on another text."""
    teachers: list[Path] = field(default_factory=list)
    """Trained runs: the model also learns from the mean of their probabilities for the next token.
    They must have the tokenizer of the new run."""
    transfer: str | None = None
    """A second text, for example one that the teachers generated. A part of each batch consists of
    blocks of this text. The option takes the same values as --data."""
    out: Path | None = None
    """Directory of the run. The default is runs/NAME; if that exists, runs/NAME-2, and so on."""
    seed: int = 1337
    """Determines the initial weights, the order of the batches, dropout and the final sample."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: TrainingPrecision = "auto"
    """Data type of matrix products. auto means bfloat16 on a CPU or CUDA GPU with instructions for
    it, and otherwise float32. float8 means float8 in large linear layers, and bfloat16 otherwise;
    it needs a recent NVIDIA GPU, such as an H100, and at least 512 channels."""
    deterministic: bool = False
    """Make results on a GPU reproducible bit for bit, at lower speed. On a CPU, results are always
    reproducible."""
    model: ModelConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Check the types and values of all settings. Raises a ValueError that names the field."""
        convert_fields(self)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}: it must be between 0 and 1")
        for name in ("name", "data", "column", "separator", "tokenizer", "transfer", "out"):
            if not is_encodable(value := str(getattr(self, name))):
                raise UserError(f"{name} is {value!a}: it is not valid UTF-8, so use another value")
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}: it must be a file name without slashes")
        mean_teacher = self.train.mean_teacher
        if mean_teacher and not self.optim.ema:
            raise ValueError(
                f"mean_teacher is {mean_teacher}, but ema is 0: set ema, for example to 0.99, so "
                f"that the run averages its weights"
            )
        weights = {"mean_teacher": mean_teacher, "ngram_weight": self.train.ngram_weight}
        if self.teachers:
            weights["teacher_weight"] = self.train.teacher_weight
        if sum(weights.values()) > 1:
            described = ", ".join(f"{name} is {value}" for name, value in weights.items() if value)
            raise ValueError(f"{described}: their sum must be at most 1")
        if self.precision == "float8":
            self._check_float8()
        if self.optim.optimizer == "muon" and isinstance(self.model, BigramConfig):
            raise ValueError("optimizer is muon, but a bigram has no blocks: use adam or adamw")

    def _check_float8(self) -> None:
        if isinstance(self.model, BigramConfig | PlainConfig):
            problem = "precision is float8, but this kind of model does not support it"
            raise ValueError(f"{problem}: use precision auto")
        if not self.train.compile:
            problem = "precision is float8, but compile is off"
            raise ValueError(f"{problem}: use precision auto, or turn compile on")
        if (width := self.model.n_embd) < 512:  # then few layers are large enough
            problem = f"precision is float8, but n_embd is {width}: it must be at least 512"
            raise ValueError(f"{problem}; use precision auto for a smaller model")
        # The model may need a multiple of twice the number of heads.
        multiples = {"n_embd": math.lcm(16, 2 * self.model.n_head), "block_size": 16}
        for name, multiple in multiples.items():  # see is_float8_layer()
            if (value := getattr(self.model, name)) % 16:
                problem = f"precision is float8, but {name} is {value}: it must be a multiple of 16"
                raise ValueError(f"{problem}; try {name} {math.ceil(value / multiple) * multiple}")

    @property
    def transfer_blocks(self) -> int:
        """The number of blocks of the transfer text in each batch."""
        return round(self.train.batch_size * self.train.transfer_share) if self.transfer else 0

    def explain_unused(self, name: str) -> str:
        """Return why the setting `name` has no effect, or "" if the setting has an effect."""
        optim = self.optim
        of_muon = "muon_lr", "momentum", "normalise_rows", "cautious_decay"
        needed = {"weight_decay": ("adamw", "muon"), **dict.fromkeys(of_muon, ("muon",))}
        if optim.optimizer not in needed.get(name, (optim.optimizer,)):
            return f"the optimizer is {optim.optimizer}"
        if name == "recompute" and isinstance(self.model, BigramConfig):
            return "a bigram has no blocks"
        if name in ("teacher_weight", "teacher_temperature") and not self.teachers:
            return "there are no --teachers"
        if name == "transfer_share" and not self.transfer:
            return "there is no --transfer"
        if name == "cooldown" and optim.schedule != "linear":
            return f"the schedule is {optim.schedule}"
        unused = corpora.explain_unused(name, self.data)
        if unused and self.transfer and name in ("column", "separator"):
            return corpora.explain_unused(name, self.transfer)
        return unused

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON object, which schema.parse_dataclass() can read."""
        out, teachers = self.out and str(self.out), [str(run) for run in self.teachers]
        model = models.to_json(self.model)
        start = self.start_from and str(self.start_from)
        paths = {"teachers": teachers, "out": out, "start_from": start}
        return {**asdict(self), **paths, "model": model}

    def check_same_run(self, saved: "RunConfig") -> None:
        """Raise UserError if this configuration and the saved one describe different runs.

        CHANGEABLE lists the settings that may differ.
        """
        new, old = flatten_settings(self), flatten_settings(saved)
        for name in sorted(new.keys() | old.keys()):
            if new.get(name) != old.get(name) and not name.startswith(CHANGEABLE):
                raise UserError(
                    f"--{name.replace('_', '-')} is {new.get(name)}, but this run was started with "
                    f"{old.get(name)}: leave the option out, or start a new run"
                )


FIXED = "optimizer", "ema", "normalise_rows"
"""Settings of OptimConfig that determine the tensors of a checkpoint."""
CHANGEABLE = (
    "train.",
    *(f"optim.{f.name}" for f in fields(OptimConfig) if f.name not in FIXED),
    "teachers",  # their locations; the SHA-256 of their weights must stay the same
    "data",  # the location of the text; the SHA-256 of the text must stay the same
    "transfer",  # as for the text
    "column",
    "separator",
    "device",
    "precision",
    "deterministic",
)
"""Prefixes of the settings that may change when a run is resumed."""


def flatten_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run in one flat dictionary, with keys such as "model.n_layer"."""
    flat: dict[str, Any] = {}
    for name, value in config.to_json().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
