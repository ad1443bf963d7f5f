"""Training: what a run is made of, and the loop.

The loop knows nothing of GPT. It draws a batch, asks the model for logits, follows the gradient of
the loss, and every so often measures the whole validation split and keeps the best weights.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import __version__, corpora
from .checkpoint import Checkpoint, new_run, save, write_json
from .data import Data
from .devices import Precision, autocast, describe, pick_device, pick_precision
from .errors import UserError
from .evaluate import cross_entropy, evaluate
from .journal import Journal, Record, overfits
from .models import Bigram, BigramConfig, GPTConfig, Model, ModelConfig, build, kind
from .optim import OptimConfig, build_optimizer, learning_rate
from .tokenizers import CharTokenizer


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on how much at a time, and when to look."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Blocks in the batch of one step."""
    accumulation: int = 1
    """Parts that each batch is worked through in: the same result in less memory."""
    eval_every: int = 250
    """Steps between evaluations on the whole validation split."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a new best."""
    stop_at_val_loss: float | None = None
    """Stop at the first evaluation whose loss is at most this."""
    compile: bool = True
    """Compile the model where that pays: on a CUDA device."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "eval_every", "log_every"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}: it must be at least 1, or None")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}: it must divide batch_size {self.batch_size}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides how a run goes."""

    name: str = "gpt"
    """Names the run's directory, runs/NAME, unless --out does."""
    data: str = "tinyshakespeare"
    """A corpus (tinyshakespeare, shakespeare, shakespeare-rest) or the path of a UTF-8 text."""
    out: Path | None = None
    """Directory of the run; without it, runs/NAME, or runs/NAME-2 and so on when that is taken."""
    seed: int = 1337
    """Decides the initial weights, the order of the batches, dropout and the sample."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Precision = "auto"
    """Of the matrix products; auto is bfloat16 on a CUDA device that has it."""
    model: GPTConfig | BigramConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: it must be at least 0 and less than 2**63")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}: it must be a plain name, without slashes")


@dataclass(frozen=True)
class Run:
    """A run that is about to begin: what the loop works with."""

    config: RunConfig
    out: Path
    device: torch.device
    precision: torch.dtype
    tokenizer: CharTokenizer
    data: Data
    model: Model
    bigram_loss: float
    """Validation loss of the bigram counted from the training split: what is to be beaten."""

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.model.parameters())

    def describe(self) -> dict[str, object]:
        """What run.json says of it."""
        return {
            "config": {**asdict(self.config), "out": str(self.out)},
            "kind": kind(self.model.config),
            "parameters": self.parameters,
            "bigram_loss": self.bigram_loss,
            "device": describe(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "versions": {
                "nanogpt": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


@dataclass(frozen=True)
class Result:
    """How a run went."""

    run: Run
    best: Record
    """The evaluation with the lowest validation loss; best/ holds its weights."""
    last: Record
    ended: str
    """Why it ended."""


class Reporter:
    """Hears how a run goes; this one keeps quiet."""

    def started(self, run: Run) -> None:
        """Called once, before the first step."""

    def recorded(self, record: Record, best: Record) -> None:
        """Called for every line of metrics.jsonl."""

    def said(self, line: str) -> None:
        """Called with what the user should know."""


def prepare(config: RunConfig) -> Run:
    """Everything that a run needs, made and checked before the first step. Raises UserError."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    text = corpora.load(config.data)
    tokenizer = CharTokenizer(text)
    data = Data(text, tokenizer, device)
    data.require(config.model.block_size)

    torch.manual_seed(config.seed)  # the initial weights, then dropout
    model = build(_fit(config.model, tokenizer.vocab_size)).to(device)
    table = BigramConfig(tokenizer.vocab_size, model.config.block_size)
    bigram = Bigram.counted(data.splits["train"].tokens.cpu(), table).to(device)
    bigram_loss = evaluate(bigram, data).loss

    out = new_run(config.out, config.name)
    config = replace(config, out=out, model=model.config, data=corpora.resolve(config.data))
    run = Run(config, out, device, precision, tokenizer, data, model, bigram_loss)
    write_json(out / "run.json", run.describe())
    return run


def _fit(config: ModelConfig, vocab_size: int) -> ModelConfig:
    if config.vocab_size not in (type(config)().vocab_size, vocab_size):
        raise UserError(
            f"--model.vocab-size is {config.vocab_size}, but this text has {vocab_size} different "
            f"tokens: leave it out, it follows from the text"
        )
    return replace(config, vocab_size=vocab_size)


def train(config: RunConfig, reporter: Reporter | None = None) -> Result:
    """Make a run directory and train in it, from the first step to the last. Raises UserError."""
    run, reporter = prepare(config), reporter or Reporter()
    reporter.started(run)
    journal = Journal(run.out, f"{run.out.name}: {run.parameters:,} parameters", run.bigram_loss)

    model, settings = run.model, config.train
    compiled = torch.compile(model) if settings.compile and run.device.type == "cuda" else model

    def forward(tokens: Tensor) -> Tensor:
        with autocast(run.device, run.precision):
            logits: Tensor = compiled(tokens)
            return logits

    optimizer = build_optimizer(model, config.optim)
    block_size = model.config.block_size
    order = torch.Generator().manual_seed(config.seed)  # of the batches, and of nothing else
    losses: list[Tensor] = []  # of the steps since the last record, left on the device
    step, ended, warned = 0, None, False
    began = time.perf_counter()

    try:
        while True:
            lr = learning_rate(step, settings.steps, config.optim)
            due = step % settings.eval_every == 0 or step == settings.steps
            if due or step % settings.log_every == 0:
                evaluation = evaluate(model, run.data) if due else None
                record = Record(
                    step=step,
                    tokens=step * settings.batch_size * block_size,
                    seconds=round(time.perf_counter() - began, 3),
                    lr=lr,
                    train_loss=torch.stack(losses).mean().item() if losses else None,
                    val_loss=evaluation.loss if evaluation else None,
                    bits_per_byte=evaluation.bits_per_byte if evaluation else None,
                )
                losses.clear()
                journal.add(record)
                if record is journal.best:
                    save(run.out / "best", Checkpoint(model, run.tokenizer, step))
                reporter.recorded(record, journal.best)
            if due and not warned and overfits(journal.records):
                reporter.said(OVERFITS)
                warned = True
            if due and (ended := reason_to_stop(journal, settings)):
                break

            for group in optimizer.param_groups:
                group["lr"] = lr
            inputs, targets = run.data.batch("train", settings.batch_size, block_size, order)
            losses.append(gradients(forward, inputs, targets, settings.accumulation))
            if config.optim.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    finally:  # when interrupted, too: what was learned so far is kept
        save(run.out / "last", Checkpoint(model, run.tokenizer, step))
        journal.draw()
    return Result(run, journal.best, journal.records[-1], ended)


def gradients(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, parts: int = 1
) -> Tensor:
    """Add the gradient of the mean loss over a batch to the parameters; gives that loss.

    The batch is worked through in equal parts, one after the other, which changes the memory that
    it takes and nothing else.
    """
    total = torch.zeros((), device=inputs.device)
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        loss = cross_entropy(forward(x), y) / parts
        loss.backward()
        total += loss.detach()
    return total


OVERFITS = (
    "Training loss keeps falling while validation loss rises: the model has begun to learn the "
    "training text by heart. More text, more dropout or a smaller model would help."
)


def reason_to_stop(journal: Journal, settings: TrainConfig) -> str | None:
    """Why training ends with the evaluation just made; None where it goes on."""
    last, best = journal.records[-1], journal.best
    target, patience = settings.stop_at_val_loss, settings.patience
    if target is not None and last.val_loss is not None and last.val_loss <= target:
        return f"validation loss reached {target}"
    if patience and sum(record.step > best.step for record in journal.evaluations) >= patience:
        return f"no better validation loss in {patience} evaluations"
    if last.step == settings.steps:
        return f"all {settings.steps:,} steps done"
    return None
