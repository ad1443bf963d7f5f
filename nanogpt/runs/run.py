"""A run: the objects that the training loop uses, and the description of a run on disk."""

import math
import platform
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock

from ..data import Data, Split, to_int64
from ..errors import UserError
from ..models import Model
from ..system.devices import describe_device, name_precision, requested_memory
from ..system.files import require_regular_file, resolve_interrupted_swap
from ..text import corpora, tokenizers
from ..text.corpora import SPLITS, Corpus
from ..text.kneser_ney import KneserNey, choose_order
from ..text.readers import Progress, no_progress
from .checkpoint import Checkpoint, Training
from .config import RunConfig
from .formats import add_header, read_dataclass
from .journal import Journal
from .loss_scale import LossScale
from .reading import CheckpointFiles, read_consistently
from .state import State
from .teachers import Teacher


@dataclass(frozen=True)
class ResumeInfo:
    """The content of training.json: the state of a run, except its tensors."""

    config: RunConfig
    text_sha256: str
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Seconds of training, evaluations included."""
    lines: int
    """Number of lines in metrics.jsonl when the checkpoint was saved."""
    losses: int
    """Number of losses in training.safetensors: the losses since the last line of metrics.jsonl."""
    gradient_norm: float | None = None
    """Norm of the gradient of the last step; None before the first step, and in older files."""
    scale: LossScale | None = None
    teachers_sha256: list[str] = field(default_factory=list)
    """SHA-256 of the weights of each teacher."""
    transfer_sha256: str = ""
    """SHA-256 of the transfer text; empty if there is none."""

    def __post_init__(self) -> None:
        counts = ("tokens", "seconds", "lines", "losses")
        check_counts(**{name: getattr(self, name) for name in counts})


def check_counts(**counts: float) -> None:
    """Raise ValueError unless 0 <= count < 2**62 for each count."""
    for name, count in counts.items():
        if not 0 <= count < 2**62:
            raise ValueError(f"{name} is {count}: it must be at least 0 and less than 2**62")


MAX_SMOOTHED_TOKENS = 3_000_000
"""Maximum tokens of a split for Run.smoothed_loss: counting more tokens could take over 10 s."""


@dataclass(frozen=True)
class Versions:
    """The versions of the software that trained a run."""

    torch: str = torch.__version__
    python: str = platform.python_version()


@dataclass(frozen=True)
class Description:
    """The content of run.json."""

    config: RunConfig
    text_sha256: str
    parameters: int
    bigram_loss: float | None
    """None for an imported run."""
    device: str
    precision: str
    versions: Versions
    teachers_sha256: list[str] = field(default_factory=list)
    """SHA-256 of the weights of each teacher."""
    transfer_sha256: str = ""
    """SHA-256 of the transfer text; empty if there is none."""

    def to_json(self) -> dict[str, object]:
        """Return the description as a JSON object, which read_description() can read."""
        return add_header({**asdict(self), "config": self.config.to_json()})


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    config: RunConfig
    planned_steps: int
    """config.train.steps when the last checkpoint was saved; in a new run, the current value."""
    out: Path
    """The run directory."""
    lock: FileLock
    device: torch.device
    precision: torch.dtype
    tokenizer: tokenizers.Tokenizer
    data: Data
    text_sha256: str
    bigram_loss: float
    """The baseline: the validation loss of bigrams counted in the training split (nats per token).

    Only the first MAX_BIGRAM_TOKENS tokens of each split are used.
    """
    state: State
    journal: Journal
    teachers: list[Teacher] = field(default_factory=list)
    transfer: Split | None = None
    """The transfer text as tokens."""
    transfer_sha256: str = ""
    weights_sum: int = 0
    """A checksum of the weights at the start, which several processes compare."""

    @cached_property
    def counted(self) -> KneserNey:
        """Smoothed n-grams, counted in the training split."""
        V, tokens = self.tokenizer.vocab_size, self.data.splits["train"].tokens
        return KneserNey(to_int64(tokens.cpu()).numpy(), choose_order(V), V)

    @cached_property
    def smoothed_loss(self) -> tuple[int, float] | None:
        """A stronger baseline: n, and the validation loss of smoothed n-grams (nats per token).

        The n-grams are counted in the training split. The result is None if a split has more than
        MAX_SMOOTHED_TOKENS tokens, or if there is not enough memory.
        """
        splits = [self.data.splits[name].tokens for name in SPLITS]
        if max(map(len, splits)) > MAX_SMOOTHED_TOKENS:
            return None
        try:
            val = to_int64(self.data.splits["val"].tokens.cpu()).numpy()
            return self.counted.n, self.counted.loss(val)
        except (RuntimeError, MemoryError) as error:
            if requested_memory(error):
                return None
            raise

    @property
    def model(self) -> Model:
        """The model to train."""
        return self.state.model

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def precision_name(self) -> str:
        """The precision of the matrix products of the training steps, for example "bfloat16"."""
        return name_precision(self.config.precision, self.precision)

    def describe(self) -> dict[str, object]:
        """Return the content of run.json."""
        description = Description(
            config=self.config,
            text_sha256=self.text_sha256,
            parameters=self.parameters,
            bigram_loss=self.bigram_loss,
            device=describe_device(self.device),
            precision=self.precision_name,
            versions=Versions(),
            teachers_sha256=[teacher.sha256 for teacher in self.teachers],
            transfer_sha256=self.transfer_sha256,
        )
        return description.to_json()

    def checkpoint(self) -> Checkpoint:
        """Return the current model, the tokenizer, the step and the best evaluation so far."""
        return Checkpoint(self.model, self.tokenizer, self.state.step, self.journal.best)

    def training(self) -> Training:
        """Return the state that a resumed run needs in addition to checkpoint()."""
        state = self.state
        info = ResumeInfo(
            config=self.config,
            text_sha256=self.text_sha256,
            tokens=state.tokens,
            seconds=state.seconds,
            lines=len(self.journal.records),
            losses=len(state.losses),
            gradient_norm=state.gradient_norm if math.isfinite(state.gradient_norm) else None,
            scale=state.scale,
            teachers_sha256=[teacher.sha256 for teacher in self.teachers],
            transfer_sha256=self.transfer_sha256,
        )
        return Training({**asdict(info), "config": self.config.to_json()}, state.tensors())


@dataclass(frozen=True)
class SavedRun:
    """A run on disk that can be resumed, with the content of its last/training.json."""

    directory: Path
    info: ResumeInfo
    checksum: str
    """SHA-256 of training.json."""

    @property
    def config(self) -> RunConfig:
        """The configuration of the run; `out` is the directory in which the run was found."""
        return replace(self.info.config, out=self.directory)

    def is_current(self) -> bool:
        """Return whether the last checkpoint is still the one that was read. Raises UserError."""
        files = CheckpointFiles(resolve_interrupted_swap(self.directory / "last"))
        return files.checksums.get("training.json") == self.checksum


def read_saved_run(directory: Path) -> SavedRun:
    """Read training.json of the last checkpoint of a run. Raises UserError."""

    def read(last: Path) -> SavedRun:
        files = CheckpointFiles(last)
        info = files.parse("training.json", ResumeInfo)
        return SavedRun(directory, info, files.checksums["training.json"])

    return read_consistently(directory / "last", read)


def read_run_config(directory: Path) -> RunConfig:
    """Return the configuration of the run in a directory. Raises UserError."""
    return read_saved_run(directory).config


def load_run_text(directory: Path, progress: Progress = no_progress) -> tuple[Corpus, float]:
    """Return the text of a run, and the fraction of the text that is the validation split.

    Raises UserError if the text is missing or has changed, or if the run was imported.
    """
    description = read_description(directory)
    config = description.config
    if not description.text_sha256:
        raise UserError(f"{directory} was imported, without its text: name a text with --data")
    return load_same_text(config, description.text_sha256, progress), config.val_fraction


def load_same_text(
    config: RunConfig, sha256: str, progress: Progress, may_download: bool = False
) -> Corpus:
    """Load the text of a run; its SHA-256 must be `sha256`. Every UserError suggests --data."""
    try:
        return corpora.load_corpus(
            config.data,
            config.column,
            config.separator,
            progress,
            expected_sha256=sha256,
            may_download=may_download,
        )
    except UserError as error:
        raise UserError(
            f"{error}; if the text of the run has moved, give its new path with --data"
        ) from None


def read_description(directory: Path) -> Description:
    """Read run.json of a run. Raises UserError."""
    return read_dataclass(require_regular_file(directory, directory / "run.json"), Description)
