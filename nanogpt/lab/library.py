"""The runs that the lab offers, their models, and their texts."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data import Split, to_int64
from ..errors import UserError
from ..models import BigramConfig
from ..reports.copying import Source
from ..runs.checkpoint import Checkpoint, load_checkpoint, read_checkpoint_info
from ..runs.directory import RUNS
from ..runs.history import HISTORY, list_snapshots, snapshot_directory
from ..runs.journal import MAX_LINE
from ..runs.run import MAX_SMOOTHED_TOKENS, load_run_text, read_description
from ..system.files import path_exists
from ..text.encoding import encode_corpus
from ..text.kneser_ney import KneserNey, choose_order
from ..text.ngrams import NGramCounts

MODEL_BYTES = 400_000_000
"""Memory for the weights of loaded models; the least recently used models are dropped."""
LOSS_TOKENS = 16_384
"""Tokens of the validation split on which the lab measures losses while the reader waits."""
MAX_COUNTED_TOKENS = MAX_SMOOTHED_TOKENS
"""Longest training split in which the lab counts n-grams, or searches for matches."""
QUIET_SECONDS = 30
"""A run that has written nothing for this time is not training."""


@dataclass(frozen=True)
class RunSummary:
    """The entry of a run in the list of runs."""

    name: str
    kind: str
    """The kind of the model: GPT, Modern, Plain or Bigram."""
    parameters: int
    data: str
    tokenizer: str
    step: int
    """The last optimizer step in metrics.jsonl."""
    steps: int
    val_loss: float | None
    """The lowest validation loss, in nats per token."""
    bigram_loss: float | None
    snapshots: list[int]
    """The steps of the snapshots in history/."""
    is_training: bool
    """Whether the run has steps left, and wrote a file in the last QUIET_SECONDS."""
    n_layer: int
    n_head: int
    block_size: int


class Texts:
    """The tokens of a run's text, and n-gram models of its training split."""

    def __init__(self, run: Path) -> None:
        checkpoint = load_checkpoint(run / "best")
        corpus, val_fraction = load_run_text(run)
        self.tokenizer = checkpoint.tokenizer
        self.train, self.val = (
            Split(encode_corpus(corpus, self.tokenizer, name, val_fraction))
            for name in ("train", "val")
        )
        block_size = checkpoint.model.config.block_size
        self.part = Split(self.val.tokens[: max(LOSS_TOKENS, block_size) + 1])
        """The first tokens of the validation split."""
        self._source: Source | None = None
        self._counts: tuple[NGramCounts, KneserNey] | None = None

    def source(self) -> Source:
        """Return the training text, prepared for finding matches in it."""
        if self._source is None:
            self._source = Source(self.tokenizer.decode(to_int64(self.train.tokens).tolist()))
        return self._source

    def count(self) -> tuple[NGramCounts, KneserNey] | None:
        """Return the bigram counts and the smoothed n-gram model; None if the text is too long."""
        if len(self.train.tokens) > MAX_COUNTED_TOKENS:
            return None
        if self._counts is None:
            ids, V = to_int64(self.train.tokens).numpy(), self.tokenizer.vocab_size
            self._counts = NGramCounts(ids, 2, V), KneserNey(ids, choose_order(V), V)
        return self._counts


class Library:
    """Finds runs, and loads their models and texts. Its methods may be called from any thread."""

    def __init__(self, given: Iterable[Path] = (), model_bytes: int = MODEL_BYTES) -> None:
        """`given` are run directories to offer besides those in runs/."""
        self.given = [path for path in given if path.parent != RUNS]
        self.model_bytes = model_bytes
        self._models: OrderedDict[tuple[Path, int, float], Checkpoint] = OrderedDict()
        self._texts: dict[tuple[Path, float], Texts] = {}
        self._summaries: dict[str, tuple[tuple[float, ...], RunSummary]] = {}
        self._lock = threading.RLock()

    def directories(self) -> dict[str, Path]:
        """Map the names of all runs to their directories.

        The runs in `given` come first, then those in runs/, from newest to oldest.
        """
        found = [path for path in RUNS.iterdir() if _is_run(path)] if RUNS.is_dir() else []
        found.sort(key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)
        named = {path.name: path for path in found}
        return {**{str(path): path for path in self.given if _is_run(path)}, **named}

    def find(self, name: str) -> Path:
        """Return the directory of a run. Raises UserError if the lab offers no such run."""
        directory = self.directories().get(name)
        if directory is None:
            raise UserError(f"there is no run {name!r} any more: choose another run")
        return directory

    def describe(self, name: str) -> RunSummary:
        """Summarise a run. Raises UserError if its files are damaged."""
        run = self.find(name)
        history = run / HISTORY
        files = [run / "run.json", run / "metrics.jsonl", *([history] if history.exists() else [])]
        stamp = tuple(file.stat().st_mtime for file in files)
        kept = self._summaries.get(name)
        if kept is None or kept[0] != stamp:
            self._summaries[name] = stamp, _summarise(name, run)
        summary = self._summaries[name][1]
        is_quiet = time.time() - max(stamp) > QUIET_SECONDS
        return replace(summary, is_training=summary.step < summary.steps and not is_quiet)

    def load(self, name: str, step: int | None = None) -> Checkpoint:
        """Load the best model of a run, or its snapshot at `step`.

        Raises UserError if that is impossible.
        """
        run = self.find(name)
        directory = run / "best" if step is None else snapshot_directory(run, step)
        if step is not None and not path_exists(directory):
            raise UserError(f"the run {name!r} has no snapshot at step {step}: choose another step")
        key = directory, read_checkpoint_info(directory).step, _find_time(run)
        with self._lock:
            if key not in self._models:
                self._models[key] = load_checkpoint(directory)
            self._models.move_to_end(key)
            sizes = {k: _count_bytes(c) for k, c in self._models.items()}
            while len(self._models) > 1 and sum(sizes.values()) > self.model_bytes:
                dropped, _ = self._models.popitem(last=False)
                del sizes[dropped]
            return self._models[key]

    def texts(self, name: str) -> Texts:
        """Return the tokens and the n-gram models of a run's text.

        Raises UserError if the text is missing or has changed.
        """
        run = self.find(name)
        key = run, _find_time(run)
        with self._lock:
            if key not in self._texts:
                self._texts = {key: Texts(run)}  # keep only one text: a text may be large
            return self._texts[key]

    def baselines(self, name: str) -> dict[str, Any]:
        """Return the order n and the validation loss (nats per token) of the smoothed n-gram model.

        Both are None if the text is too long to count.
        """
        texts = self.texts(name)
        counts = texts.count()
        if counts is None:
            return {"n": None, "ngram_loss": None}
        smoothed = counts[1]
        return {"n": smoothed.n, "ngram_loss": smoothed.loss(to_int64(texts.val.tokens).numpy())}


def _summarise(name: str, run: Path) -> RunSummary:
    description = read_description(run)
    config, model = description.config, description.config.model
    records = read_metrics(run)
    losses = [loss for record in records for loss in get_losses(record)]
    return RunSummary(
        name=name,
        kind=type(model).__name__.removesuffix("Config"),
        parameters=description.parameters,
        data=config.data,
        tokenizer=config.tokenizer,
        step=records[-1]["step"] if records else 0,
        steps=config.train.steps,
        val_loss=min(losses, default=None),
        bigram_loss=description.bigram_loss,
        snapshots=list_snapshots(run),
        is_training=False,
        n_layer=0 if isinstance(model, BigramConfig) else model.n_layer,
        n_head=0 if isinstance(model, BigramConfig) else model.n_head,
        block_size=model.block_size,
    )


def read_metrics(run: Path, start: int = 0) -> list[dict[str, Any]]:
    """Return the complete lines of metrics.jsonl, starting at line `start`."""
    records = []
    with (run / "metrics.jsonl").open("rb") as file:
        for number, line in enumerate(file):
            if number >= start and line.endswith(b"\n") and len(line) <= MAX_LINE:
                records.append(json.loads(line))
    return records


def get_losses(record: dict[str, Any]) -> list[float]:
    """Return the validation losses in a line of metrics.jsonl."""
    return [record[name] for name in ("val_loss", "ema_val_loss") if name in record]


def to_json(value: object) -> bytes:
    """Encode a dataclass, or a value of a JSON type, as JSON."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)  # type: ignore[call-overload]
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def _find_time(run: Path) -> float:
    """Return the creation time, which distinguishes a run from a deleted run of the same name."""
    return (run / "run.json").stat().st_mtime


def _is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in ("run.json", "metrics.jsonl"))


def _count_bytes(checkpoint: Checkpoint) -> int:
    return sum(p.nbytes for p in checkpoint.model.parameters())
