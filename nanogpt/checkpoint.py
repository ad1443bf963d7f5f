"""A checkpoint on disk: a directory that is whole at every instant, and safe to read.

    best/ or last/
      model.safetensors      the weights, under their plain names
      config.json            the model's configuration, its step, the best loss so far
      tokenizer.json
      training.safetensors   in last/ only: optimizer, random generators, losses not yet reported
      training.json          in last/ only: the run's configuration, counts
      SHA256SUMS             of all the others; `sha256sum -c SHA256SUMS` checks them, too

Safetensors and JSON only: nothing in it can execute code. Everything that a file claims is checked
before memory is taken for it.
"""

import hashlib
import math
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import models
from .errors import UserError
from .files import (
    damaged,
    flush,
    parse_json,
    read,
    regular,
    remove,
    replace_directory,
    settled,
    sha256,
    to_json,
)
from .gpu import Snapshot, snapshot
from .models import KINDS, BigramConfig, Model, ModelConfig, build
from .schema import parse, shown
from .tokenizers import JSON_LIMIT, Tokenizer, from_json

T = TypeVar("T")
SUMS = "SHA256SUMS"
DTYPES = {"F32": torch.float32, "U8": torch.uint8}
"""The types of the tensors in our files."""
HEADER_LIMIT = 1 << 20
"""Bytes of a safetensors header: room for thousands of tensors."""


@dataclass(frozen=True)
class Best:
    """The lowest validation loss of a run."""

    step: int
    val_loss: float
    """Nats per token."""
    bits_per_byte: float
    averaged: bool = False
    """Whether that is the loss of the running mean of the weights."""


@dataclass(frozen=True)
class Training:
    """What a resume needs beyond the model: start.py has the facts, state.py the tensors."""

    facts: dict[str, Any]
    """As in JSON."""
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds."""

    model: Model
    tokenizer: Tokenizer
    step: int
    """Optimizer steps taken."""
    best: Best | None = None
    """The best of the run up to here; in best/, this very checkpoint."""


Contents = dict[str, dict[str, Any] | Snapshot]
"""The files of a checkpoint by name: JSON objects, or tensors by their names."""


def contents(
    checkpoint: Checkpoint, weights: Snapshot, training: Training | None = None
) -> Contents:
    """A checkpoint as files, copied: training may go on while they are written."""
    files: Contents = {
        "config.json": {
            "model": models.to_json(checkpoint.model.config),
            "step": checkpoint.step,
            "best": checkpoint.best and asdict(checkpoint.best),
        },
        "tokenizer.json": checkpoint.tokenizer.to_json(),
        "model.safetensors": weights,
    }
    if training:
        files |= {
            "training.safetensors": snapshot(training.tensors),
            "training.json": training.facts,
        }
    return files


def plain(model: nn.Module) -> Model:
    """The model itself, whatever wraps it: torch.compile, or a parallel module."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    assert isinstance(model, Model)
    return model


def write(directory: Path, files: Contents) -> None:
    """Put a checkpoint directory in place of the one there, whole. Raises OSError."""
    new = directory.with_name(f".{directory.name}.new")
    remove(new)
    try:
        new.mkdir(parents=True)
        for name, content in files.items():
            if isinstance(content, dict):
                (new / name).write_bytes(to_json(content))
            else:
                save_file(content(), new / name)
                shutil.copymode(new / "config.json", new / name)  # as the user's other files
            flush(new / name)
        sums = "".join(f"{sha256(new / name)}  {name}\n" for name in files)
        (new / SUMS).write_text(sums, encoding="ascii")
        flush(new / SUMS)
        flush(new)
        replace_directory(directory, new)
    except BaseException as error:
        remove(new)
        if isinstance(error, SafetensorError):
            raise _os_error(error) from None
        raise


def _os_error(error: SafetensorError) -> OSError:
    """What the system said, as Python has it."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def save(directory: Path, checkpoint: Checkpoint, training: Training | None = None) -> None:
    """Write a checkpoint directory. Raises OSError; what was there before is then still there."""
    checkpoint = replace(checkpoint, model=plain(checkpoint.model))
    write(directory, contents(checkpoint, snapshot(checkpoint.model.state_dict()), training))


class Writer:
    """Does what writes checkpoints in order, on a GPU beside the training; raises its errors."""

    def __init__(self, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception) if failed else nullcontext():
            self.wait()

    def submit(self, job: Callable[[], object]) -> None:
        """Do a job now, or as soon as those before are done. Raises what one of them raised."""
        if self._pool is None:
            job()
        else:
            # A disk that is too slow for the checkpoints slows the training, not fills the memory.
            self.wait(leave=3)
            self._pending.append(self._pool.submit(self._do, job))

    def _do(self, job: Callable[[], object]) -> None:
        """Do a job, unless one before it failed: each counts on those before."""
        if not self._failed:
            try:
                job()
            except BaseException:
                self._failed = True
                raise

    def wait(self, leave: int = 0) -> None:
        """Return when no more than so many jobs are left. Raises what one of them raised."""
        while self._pending and (len(self._pending) > leave or self._pending[0].done()):
            self._pending.popleft().result()


def load(directory: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint directory, its model in evaluation mode on device. Raises UserError."""
    return _steady(Path(directory), lambda found: _load(found, device))


def _steady(directory: Path, read: Callable[[Path], T]) -> T:
    """What read gives, again if a training replaced the directory while it was read."""
    while True:
        found = settled(directory)
        before = _identity(found)
        try:
            return read(found)
        except UserError:
            if _identity(settled(directory)) == before:
                raise


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _load(directory: Path, device: torch.device | str) -> Checkpoint:
    files = Files(directory)
    head = files.parse("config.json", _Head)
    config, weights = head.model, "model.safetensors"
    try:
        tokenizer = from_json(files.json("tokenizer.json"))
    except ValueError as error:
        raise files.damaged("tokenizer.json", error) from None
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{directory}/tokenizer.json has {tokenizer.vocab_size} tokens and the model "
            f"{config.vocab_size}: they are not of one run"
        )
    try:
        if files.count(weights) != _count(config):  # building it could take for ever
            raise files.damaged(weights, f"not the number of tensors of {config}")
        expected = _shapes(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # numbers too large for a tensor
        raise files.damaged("config.json", error) from None
    tensors = files.tensors(weights, expected)
    with _Unfilled():
        model = build(config)
    model.load_state_dict(tensors)
    return Checkpoint(model.to(device).eval(), tokenizer, head.step, head.best)


def _shapes(config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a model without the memory for them."""
    with torch.device("meta"), _Unfilled():
        return build(config).state_dict()


class _Unfilled(TorchFunctionMode):
    """Within it, torch.nn.init draws no numbers, where those of a file come in their place.

    On the device meta, drawing them would import torch's compiler, which takes longer than torch.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _count(config: ModelConfig) -> int:
    """How many tensors a model has, from those of one and of two layers."""
    if isinstance(config, BigramConfig):
        return len(_shapes(config))
    one, two = (len(_shapes(replace(config, n_layer=n))) for n in (1, 2))
    return one + (config.n_layer - 1) * (two - one)


def load_training(directory: Path, cls: type[T]) -> T:
    """What training.json says, as the dataclass cls. Raises UserError."""
    return _steady(directory, lambda found: Files(found).parse("training.json", cls))


def load_tensors(
    directory: Path, expected: Mapping[str, Tensor], optional: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of training.safetensors: all expected, of which only shape and type count.

    Those that are optional may be there or not, small and of any shape. Raises UserError.
    """
    return Files(settled(directory)).tensors("training.safetensors", expected, optional)


@dataclass(frozen=True)
class _Head:
    """config.json."""

    model: ModelConfig
    step: int
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step is {self.step}: it must be at least 0")


class Files:
    """The files of a checkpoint directory, each compared with SHA256SUMS as it is read.

    Whatever is missing or damaged is a UserError that names the file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        lines = read(self._file(SUMS), limit=4096).decode("ascii", "replace").splitlines()
        self.sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def damaged(self, name: str, reason: object) -> UserError:
        """The error to raise for a file."""
        return damaged(self.directory / name, reason)

    def _file(self, name: str) -> Path:
        return regular(self.directory, self.directory / name)

    def _compare(self, name: str, digest: str) -> None:
        if self.sums.get(name) != digest:
            raise self.damaged(name, f"its SHA-256 is not the one in {SUMS}")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        raw = read(self._file(name), JSON_LIMIT)
        self._compare(name, hashlib.sha256(raw).hexdigest())
        return parse_json(raw, self.directory / name)

    def parse(self, name: str, cls: type[T]) -> T:
        """The dataclass in a file."""
        try:
            return parse(cls, self.json(name), KINDS)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, error) from None

    def _open(self, name: str) -> Any:
        """A safetensors file: its header read, its tensors still on the disk."""
        file = self._file(name)
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
            if length > HEADER_LIMIT:
                raise self.damaged(name, f"a header of {length:,} bytes")
            return safe_open(file, framework="pt")
        except OSError as error:
            raise self.damaged(name, error.strerror or error) from None
        except SafetensorError as error:
            raise self.damaged(name, error) from None

    def count(self, name: str) -> int:
        """How many tensors a file holds."""
        with self._open(name) as opened:
            return len(opened.keys())

    def tensors(
        self,
        name: str,
        expected: Mapping[str, Tensor],
        optional: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The tensors in a file, if they have exactly the names, shapes and types expected."""
        with self._open(name) as opened:
            names = set(opened.keys())
            if missing := expected.keys() - names:
                raise self.damaged(name, f"{min(missing)} is missing")
            if unknown := names - expected.keys() - set(optional):
                raise self.damaged(name, f"unknown tensor {shown(min(unknown))}")
            for tensor in names:
                found = opened.get_slice(tensor)
                shape, dtype = tuple(found.get_shape()), found.get_dtype()
                if tensor not in expected:
                    if dtype != "U8" or math.prod(shape) > 1 << 16:
                        raise self.damaged(name, f"{tensor} is {dtype} {shape}, not a few bytes")
                    continue
                like = expected[tensor]
                if shape != tuple(like.shape) or DTYPES.get(dtype) != like.dtype:
                    raise self.damaged(
                        name, f"{tensor} is {dtype} {shape}, not {like.dtype} {tuple(like.shape)}"
                    )
            # Sizes are right, so that this takes no longer and no more memory than it should.
            self._compare(name, sha256(self.directory / name))
            return {tensor: opened.get_tensor(tensor) for tensor in names}
