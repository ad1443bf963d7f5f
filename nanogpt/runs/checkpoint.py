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

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import models
from ..errors import UserError
from ..models import BigramConfig, Model, ModelConfig, build
from ..system.files import (
    compute_sha256,
    dump_json,
    remove_if_present,
    replace_directory,
    resolve_interrupted_swap,
    sync_to_disk,
)
from ..system.gpu import Snapshot, take_snapshot
from ..text.tokenizers import Tokenizer, parse_tokenizer
from .reading import SUMS, Files, _steady

T = TypeVar("T")


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


def checkpoint_files(
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
            "training.safetensors": take_snapshot(training.tensors),
            "training.json": training.facts,
        }
    return files


def plain(model: nn.Module) -> Model:
    """The model itself, whatever wraps it: torch.compile, or a parallel module."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    assert isinstance(model, Model)
    return model


def write_checkpoint(directory: Path, files: Contents) -> None:
    """Put a checkpoint directory in place of the one there, whole. Raises OSError."""
    new = directory.with_name(f".{directory.name}.new")
    remove_if_present(new)
    try:
        new.mkdir(parents=True)
        for name, content in files.items():
            if isinstance(content, dict):
                (new / name).write_bytes(dump_json(content))
            else:
                save_file(content(), new / name)
                shutil.copymode(new / "config.json", new / name)  # as the user's other files
            sync_to_disk(new / name)
        sums = "".join(f"{compute_sha256(new / name)}  {name}\n" for name in files)
        (new / SUMS).write_bytes(sums.encode("ascii"))
        sync_to_disk(new / SUMS)
        sync_to_disk(new)
        replace_directory(directory, new)
    except BaseException as error:
        remove_if_present(new)
        if isinstance(error, SafetensorError):
            raise _os_error(error) from None
        raise


def _os_error(error: SafetensorError) -> OSError:
    """The message of the operating system, without its number, which differs on Windows."""
    match = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return OSError(match[1].strip() if match else str(error))


def save_checkpoint(
    directory: Path, checkpoint: Checkpoint, training: Training | None = None
) -> None:
    """Write a checkpoint directory. Raises OSError; what was there before is then still there."""
    checkpoint = replace(checkpoint, model=plain(checkpoint.model))
    write_checkpoint(
        directory,
        checkpoint_files(checkpoint, take_snapshot(checkpoint.model.state_dict()), training),
    )


def load_checkpoint(directory: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint directory, its model in evaluation mode on device. Raises UserError."""
    return _steady(Path(directory), lambda found: _load(found, device))


def _load(directory: Path, device: torch.device | str) -> Checkpoint:
    files = Files(directory)
    head = files.parse("config.json", _Head)
    config, weights = head.model, "model.safetensors"
    try:
        tokenizer = parse_tokenizer(files.json("tokenizer.json"))
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
    files = Files(resolve_interrupted_swap(directory))
    return files.tensors("training.safetensors", expected, optional)


@dataclass(frozen=True)
class _Head:
    """config.json."""

    model: ModelConfig
    step: int
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step is {self.step}: it must be at least 0")
