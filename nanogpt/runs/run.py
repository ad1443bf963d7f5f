"""A run: everything that the loop works with, and reading the description of another."""

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock

from .. import __version__
from ..data import Data
from ..errors import UserError
from ..models import KINDS, Model
from ..system.devices import describe_device
from ..system.files import damaged_error, read_json, require_regular_file
from ..system.schema import parse_dataclass
from ..text import corpora, tokenizers
from ..text.corpora import Corpus
from ..text.readers import Progress, no_progress
from .checkpoint import Checkpoint, Training, load_training
from .config import RunConfig
from .journal import Journal
from .loss_scale import LossScale
from .state import State


@dataclass(frozen=True)
class ResumeInfo:
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
            device=describe_device(self.device),
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
        facts = ResumeInfo(
            config=self.config,
            text_sha256=self.text_sha256,
            tokens=state.tokens,
            seconds=state.seconds,
            lines=len(self.journal.records),
            losses=len(state.losses),
            scale=state.scale,
        )
        return Training({**asdict(facts), "config": self.config.to_json()}, state.tensors())


def read_run_config(directory: Path) -> RunConfig:
    """The configuration of the run in a directory. Raises UserError."""
    return replace(load_training(directory / "last", ResumeInfo).config, out=directory)


def load_run_text(directory: Path, progress: Progress = no_progress) -> tuple[Corpus, float]:
    """The text that a run learned from, and the part of it that the run was measured with.

    Raises UserError where it is not the same any more.
    """
    description = read_description(directory)
    config = description.config
    corpus = corpora.load_corpus(
        config.data,
        config.column,
        config.separator,
        progress,
        expected_sha256=description.text_sha256,
        may_download=False,
    )
    return corpus, config.val_fraction


def read_description(directory: Path) -> Description:
    """What the run.json of a run says. Raises UserError."""
    file = require_regular_file(directory, directory / "run.json")
    try:
        return parse_dataclass(Description, read_json(file), KINDS)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None
