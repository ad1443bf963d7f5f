"""What a run is made of, as the user asks for it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import models
from ..data import OrderName
from ..errors import UserError
from ..models import BigramConfig, GPTConfig, ModelConfig
from ..optim import OptimConfig
from ..system.devices import Precision


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on how much at a time, and when to look."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Blocks in the batch of one step."""
    accumulation: int = 1
    """Parts that each batch is worked through in: the same result in less memory."""
    order: OrderName = "random"
    """random: blocks from anywhere in the text. epochs: every block of it once before any again."""
    eval_every: int = 250
    """Steps between checkpoints, each followed by an evaluation on the whole validation split."""
    eval_first: bool = True
    """Measure before the first step, too."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a new best."""
    stop_at_val_loss: float | None = None
    """Stop at the first evaluation whose loss is at most this."""
    compile: bool = True
    """Compile the blocks of the model and the loss, on a CUDA device."""
    cuda_graph: bool = True
    """Capture a step once and replay it, on a CUDA device; never in float16."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "eval_every", "log_every"):
            if not 1 <= (value := getattr(self, name)) < 2**31:
                raise ValueError(f"{name} is {value}: it must be at least 1 and less than 2**31")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}: it must be at least 1, or None")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}: it must divide batch_size {self.batch_size}"
            )

    def evaluates_at(self, step: int) -> bool:
        """Whether the run is measured after so many steps."""
        first = step == 0 and not self.eval_first
        return step == self.steps or (step % self.eval_every == 0 and not first)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides how a run goes."""

    name: str = "gpt"
    """Names the run's directory, runs/NAME, unless --out does."""
    data: str = "tinyshakespeare"
    """A corpus (tinyshakespeare, shakespeare, shakespeare-rest), a file, a folder or a pattern of
    texts, .jsonl or .parquet, an address (#sha256=HASH checks it), hf:NAME or hf:NAME:PART of the
    Hugging Face Hub, - for standard input, or a folder with nanoGPT's train.bin and val.bin."""
    column: str = "text"
    """Where the texts of .jsonl and .parquet are."""
    separator: str = "\n\n"
    """What stands between the documents of several files, or of .jsonl and .parquet."""
    val_fraction: float = 0.1
    """Part of the text, at its end, to measure with; of a large text less is enough."""
    tokenizer: str = "char"
    """char, byte, bpe, bpe:N for so many tokens, or the path of a Hugging Face tokenizer.json."""
    out: Path | None = None
    """Directory of the run; without it, runs/NAME, or runs/NAME-2 and so on when that is taken."""
    seed: int = 1337
    """Decides the initial weights, the order of the batches, dropout and the sample."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Precision = "auto"
    """Of the matrix products; auto is bfloat16 where there are instructions for it."""
    deterministic: bool = False
    """The same bits from the same run, on a GPU too; slower there. A CPU always gives them."""
    model: ModelConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}: it must be between 0 and 1")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}: it must be a plain name, without slashes")
        if self.optim.optimizer == "muon" and isinstance(self.model, BigramConfig):
            raise ValueError("optimizer is muon, and a bigram has no blocks: take adam or adamw")

    def to_json(self) -> dict[str, Any]:
        """What schema.parse() makes this configuration from."""
        out = None if self.out is None else str(self.out)
        return {**asdict(self), "out": out, "model": models.to_json(self.model)}

    def check_same_run(self, begun: "RunConfig") -> None:
        """Raise UserError where this configuration asks for another run than the one begun.

        How long it goes on, how fast, and on what hardware may change; what it is may not.
        """
        now, then = flatten_settings(self), flatten_settings(begun)
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name) and not name.startswith(MAY_CHANGE):
                raise UserError(
                    f"--{name.replace('_', '-')} is {now.get(name)}, and this run began with "
                    f"{then.get(name)}: leave it out, or begin another run"
                )


MAY_CHANGE = (
    "train.",
    *(f"optim.{f.name}" for f in fields(OptimConfig) if f.name not in ("optimizer", "ema")),
    "data",  # it must still be the same text
    "column",
    "separator",
    "device",
    "precision",
    "deterministic",
)
"""Settings that may be others when a run goes on."""


def flatten_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting of a run, by its name on the command line."""
    found: dict[str, Any] = {}
    for name, value in config.to_json().items():
        inner = value if isinstance(value, dict) else {None: value}
        found |= {f"{name}.{key}" if key else name: each for key, each in inner.items()}
    return found
