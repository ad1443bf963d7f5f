"""A run ready to go: prepared anew, or resumed from its last checkpoint."""

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock

from . import __version__, corpora, tokenizers
from .checkpoint import Checkpoint, Training, load, load_tensors, load_training
from .config import RunConfig
from .corpora import SPLITS, Corpus
from .data import Data, widened
from .devices import (
    describe,
    pick_device,
    pick_precision,
    use_deterministic,
    use_memory,
    use_threads,
)
from .encoding import tokenizer_of
from .errors import UserError, cannot_write
from .files import damaged, read_json, regular, settled
from .journal import Journal
from .models import KINDS, Model, ModelConfig, build
from .models.bigram import counted_loss
from .optim import LossScale, build_optimizers
from .runs import claim, new_run
from .schema import parse
from .sources import Progress, quiet
from .state import GENERATORS, State

COUNTED = 5_000_000
"""Tokens, the most that the bigram baseline is counted from."""


@dataclass(frozen=True)
class Facts:
    """What training.json says: all of a run's state that is no tensor."""

    config: RunConfig
    text_sha256: str
    tokens: int
    seconds: float
    lines: int
    """Of metrics.jsonl, written before the checkpoint was made."""
    losses: int
    """Steps since the last of these lines: their losses are among the tensors."""
    scale: LossScale | None = None

    def __post_init__(self) -> None:
        require(tokens=self.tokens, seconds=self.seconds, lines=self.lines, losses=self.losses)


def require(**counts: float) -> None:
    """Raise ValueError unless none is negative, nor more than anything can count to."""
    for name, count in counts.items():
        if not 0 <= count < 2**62:
            raise ValueError(f"{name} is {count}: it must be at least 0 and less than 2**62")


@dataclass(frozen=True)
class Versions:
    """Of what a run was made with."""

    nanogpt: str = __version__
    torch: str = torch.__version__
    python: str = platform.python_version()


@dataclass(frozen=True)
class Description:
    """What run.json says."""

    config: RunConfig
    text_sha256: str
    parameters: int
    bigram_loss: float
    device: str
    precision: str
    versions: Versions


@dataclass(frozen=True)
class Run:
    """A run that is about to begin or to go on: what the loop works with."""

    config: RunConfig
    out: Path
    lock: FileLock
    device: torch.device
    precision: torch.dtype
    tokenizer: tokenizers.Tokenizer
    data: Data
    text_sha256: str
    bigram_loss: float
    """Validation loss of the bigram counted from the training split: what is to be beaten.

    Of large splits the first COUNTED tokens are counted.
    """
    state: State
    journal: Journal

    @property
    def model(self) -> Model:
        """What learns."""
        return self.state.model

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.model.parameters())

    def describe(self) -> dict[str, object]:
        """What run.json says of it."""
        description = Description(
            config=self.config,
            text_sha256=self.text_sha256,
            parameters=self.parameters,
            bigram_loss=self.bigram_loss,
            device=describe(self.device),
            precision=str(self.precision).removeprefix("torch."),
            versions=Versions(),
        )
        return {**asdict(description), "config": self.config.to_json()}

    def checkpoint(self) -> Checkpoint:
        """The model as it is, and the best loss up to here."""
        return Checkpoint(self.model, self.tokenizer, self.state.step, self.journal.best)

    def training(self) -> Training:
        """What a resume needs besides."""
        state = self.state
        facts = Facts(
            config=self.config,
            text_sha256=self.text_sha256,
            tokens=state.tokens,
            seconds=state.seconds,
            lines=len(self.journal.records),
            losses=len(state.losses),
            scale=state.scale,
        )
        return Training({**asdict(facts), "config": self.config.to_json()}, state.tensors())


def prepare(config: RunConfig, progress: Progress = quiet) -> Run:
    """A new run, everything in it made and checked before its first step. Raises UserError."""
    device = _hardware(config)
    pick_precision(config.precision, device)
    corpus = corpora.load(config.data, None, config.column, config.separator, progress)
    tokenizer = tokenizer_of(config.tokenizer, corpus, config.val_fraction, progress)
    data = Data(corpus, tokenizer, device, config.val_fraction, progress)
    data.require(config.model.block_size)
    torch.manual_seed(config.seed)  # the initial weights, then dropout
    model = build(_with_vocabulary(config.model, tokenizer.vocab_size)).to(device)
    out, lock = new_run(config.out, config.name)
    config = replace(config, out=out, model=model.config, data=corpus.name)
    run = _run(config, lock, model, tokenizer, data, corpus.facts.sha256)
    try:
        run.journal.begin()
    except OSError as error:
        raise cannot_write(out, error) from None
    return run


def resume(directory: Path, config: RunConfig, progress: Progress = quiet) -> Run:
    """The run in a directory, as its last checkpoint has it, to go on by config.

    Raises UserError where config asks for another run, or where a file is missing or damaged;
    Stopped where nothing can be written.
    """
    try:
        lock = claim(directory)
        for checkpoint in ("last", "best"):  # where a replacement was cut short
            if (old := settled(directory / checkpoint)) != directory / checkpoint:
                old.rename(directory / checkpoint)
        try:
            return _resume(directory, config, lock, progress)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise cannot_write(directory, error) from None


def _resume(directory: Path, config: RunConfig, lock: FileLock, progress: Progress) -> Run:
    last = directory / "last"
    facts = load_training(last, Facts)
    config.require_same_run(replace(facts.config, out=directory))
    device = _hardware(config)
    corpus = corpora.load(config.data, facts.text_sha256, config.column, config.separator, progress)
    checkpoint = load(last, device)
    if checkpoint.model.config != config.model:
        raise damaged(last / "config.json", "its model is not the one in training.json")
    if checkpoint.step > config.train.steps:
        raise UserError(
            f"--train.steps is {config.train.steps}, and {directory} is at step "
            f"{checkpoint.step}: name a larger number"
        )
    tokenizer, model = checkpoint.tokenizer, checkpoint.model.train()
    data = Data(corpus, tokenizer, device, config.val_fraction, progress)
    data.require(config.model.block_size)
    config = replace(config, out=directory, data=corpus.name)
    run = _run(config, lock, model, tokenizer, data, facts.text_sha256)
    _restore(run, facts, checkpoint)
    return run


def begun_with(directory: Path) -> RunConfig:
    """The configuration of the run in a directory. Raises UserError."""
    return replace(load_training(directory / "last", Facts).config, out=directory)


def text_of(directory: Path, progress: Progress = quiet) -> tuple[Corpus, float]:
    """The text that a run learned from, and the part of it that the run was measured with.

    Raises UserError where it is not the same any more.
    """
    description = described(directory)
    config = description.config
    corpus = corpora.load(
        config.data, description.text_sha256, config.column, config.separator, progress
    )
    return corpus, config.val_fraction


def described(directory: Path) -> Description:
    """What the run.json of a run says. Raises UserError."""
    file = regular(directory, directory / "run.json")
    try:
        return parse(Description, read_json(file), KINDS)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from None


def _restore(run: Run, facts: Facts, checkpoint: Checkpoint) -> None:
    state, step = run.state, checkpoint.step
    state.step, state.tokens, state.seconds = step, facts.tokens, facts.seconds
    tensors = load_tensors(run.out / "last", state.expected(facts.losses), GENERATORS)
    try:
        state.restore(tensors)
    except (RuntimeError, ValueError) as error:
        raise damaged(run.out / "last" / "training.safetensors", error) from None
    if state.scale and facts.scale:
        state.scale = facts.scale
    best = load(run.out / "best").best if (run.out / "best").exists() else None
    if best and best.step == step and run.config.train.evaluates_at(step):
        best = checkpoint.best  # the evaluation that follows finds this one again
    run.journal.resume(facts.lines, step, best)


def _hardware(config: RunConfig) -> torch.device:
    use_threads()
    use_memory()
    use_deterministic(config.deterministic)
    return pick_device(config.device)


def _run(
    config: RunConfig,
    lock: FileLock,
    model: Model,
    tokenizer: tokenizers.Tokenizer,
    data: Data,
    text_sha256: str,
) -> Run:
    """What prepare() and resume() have in common."""
    assert config.out is not None
    device = next(model.parameters()).device
    precision = pick_precision(config.precision, device)
    train, val = (widened(data.splits[name].tokens[:COUNTED].cpu()) for name in SPLITS)
    bigram_loss = counted_loss(train, val, tokenizer.vocab_size)
    state = State(
        model=model,
        optimizers=build_optimizers(model, config.optim, precision),
        scale=LossScale() if precision == torch.float16 else None,
        average=[p.detach().clone() for p in model.parameters() if config.optim.ema],
        losses=torch.empty(0, device=device),
    )
    title = f"{config.out.name}: {sum(p.numel() for p in model.parameters()):,} parameters"
    return Run(
        config=config,
        out=config.out,
        lock=lock,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        data=data,
        text_sha256=text_sha256,
        bigram_loss=bigram_loss,
        state=state,
        journal=Journal(config.out, title, bigram_loss),
    )


def _with_vocabulary(config: ModelConfig, vocab_size: int) -> ModelConfig:
    if config.vocab_size not in (type(config)().vocab_size, vocab_size):
        raise UserError(
            f"--model.vocab-size is {config.vocab_size}, but this text has {vocab_size} different "
            f"tokens: leave it out, it follows from the text"
        )
    return replace(config, vocab_size=vocab_size)
