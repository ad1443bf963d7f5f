"""Writes and reads checkpoints: directories that are complete at all times and safe to read.

    best/ or last/
      config.json            model configuration, step, lowest validation loss so far
      tokenizer.json
      model.safetensors      the weights, under their names in the uncompiled model
      training.json          only in last/: configuration and counters of the run
      training.safetensors   only in last/: optimizers, random generators, losses not yet logged
      SHA256SUMS             checksums of the other files, for `sha256sum -c SHA256SUMS`

A checkpoint consists of safetensors and JSON files, so reading it cannot execute code.
"""

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from .formats import add_header
from .reading import SUMS, CheckpointFiles, read_consistently


@dataclass(frozen=True)
class Best:
    """The evaluation with the lowest validation loss in a run."""

    step: int
    """Optimizer steps taken."""
    val_loss: float
    """Nats per token."""
    bits_per_byte: float | None
    averaged: bool = False
    """Whether val_loss is the loss of the averaged weights."""


@dataclass(frozen=True)
class Training:
    """The part of a checkpoint that is needed only to resume a run."""

    info: dict[str, Any]
    """The content of training.json."""
    tensors: dict[str, Tensor]
    """The content of training.safetensors."""


@dataclass(frozen=True)
class Checkpoint:
    """The part of a checkpoint that best/ and last/ have in common."""

    model: Model
    tokenizer: Tokenizer
    step: int
    """Optimizer steps taken."""
    best: Best | None = None
    """The best evaluation up to this step; in best/, the evaluation of these weights."""
    weights_sha256: str = ""
    """SHA-256 of model.safetensors; "" if the checkpoint was not read from a file."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of config.json."""

    model: ModelConfig
    step: int
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step is {self.step}: it must be at least 0")


Contents = dict[str, dict[str, Any] | Snapshot]
"""The files of a checkpoint by name: each is a JSON object or a snapshot of named tensors."""


def checkpoint_files(
    checkpoint: Checkpoint, weights: Snapshot, training: Training | None = None
) -> Contents:
    """Return the contents of the files to write.

    The contents share no memory with the run, so training can continue while the files are written.
    """
    files: Contents = {
        "config.json": add_header(
            {
                "model": models.to_json(checkpoint.model.config),
                "step": checkpoint.step,
                "best": checkpoint.best and asdict(checkpoint.best),
            }
        ),
        "tokenizer.json": checkpoint.tokenizer.to_json(),
        "model.safetensors": weights,
    }
    if training:
        files |= {
            "training.safetensors": take_snapshot(training.tensors),
            "training.json": add_header(training.info),
        }
    return files


def write_checkpoint(directory: Path, files: Contents) -> None:
    """Replace a checkpoint directory with a new one. After an OSError, the old one remains."""
    new = directory.with_name(f".{directory.name}.new")
    remove_if_present(new)
    try:
        new.mkdir(parents=True)
        for name, content in files.items():
            if isinstance(content, dict):
                (new / name).write_bytes(dump_json(content))
            else:
                save_file(content(), new / name)
                # save_file() sets other permissions than write_bytes().
                shutil.copymode(new / "config.json", new / name)
            sync_to_disk(new / name)
        sums = "".join(f"{compute_sha256(new / name)}  {name}\n" for name in files)
        (new / SUMS).write_bytes(sums.encode("ascii"))
        sync_to_disk(new / SUMS)
        sync_to_disk(new)
        replace_directory(directory, new)
    except BaseException as error:
        remove_if_present(new)
        if isinstance(error, SafetensorError):
            raise to_os_error(error) from None
        raise


def to_os_error(error: SafetensorError) -> OSError:
    """Return an OSError with only the message of the OS, such as "No space left on device"."""
    match = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return OSError(match[1].strip() if match else str(error))


def save_checkpoint(
    directory: Path, checkpoint: Checkpoint, training: Training | None = None
) -> None:
    """Write a checkpoint directory. After an OSError, the old directory remains."""
    checkpoint = replace(checkpoint, model=unwrap_model(checkpoint.model))
    write_checkpoint(
        directory,
        checkpoint_files(checkpoint, take_snapshot(checkpoint.model.state_dict()), training),
    )


def unwrap_model(model: nn.Module) -> Model:
    """Return the model inside wrappers such as torch.compile or DistributedDataParallel."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    assert isinstance(model, Model)
    return model


def load_checkpoint(directory: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint; its model is on `device`, in evaluation mode. Raises UserError."""
    return read_consistently(Path(directory), lambda current: _load(current, device))


def read_checkpoint_info(directory: Path) -> CheckpointInfo:
    """Read only the file config.json of a checkpoint. Raises UserError."""
    return read_consistently(
        directory, lambda current: CheckpointFiles(current).parse("config.json", CheckpointInfo)
    )


def load_training_tensors(
    directory: Path, expected: Mapping[str, Tensor], optional: Collection[str] = ()
) -> dict[str, Tensor]:
    """Read a checkpoint's training.safetensors; see CheckpointFiles.tensors(). Raises UserError."""
    return CheckpointFiles(resolve_interrupted_swap(directory)).tensors(
        "training.safetensors", expected, optional
    )


def _load(directory: Path, device: torch.device | str) -> Checkpoint:
    files = CheckpointFiles(directory)
    info = files.parse("config.json", CheckpointInfo)
    config, weights = info.model, "model.safetensors"
    try:
        tokenizer = parse_tokenizer(files.json("tokenizer.json"))
    except UserError:
        raise
    except ValueError as error:
        raise files.damaged("tokenizer.json", error) from None
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{directory}/tokenizer.json has {tokenizer.vocab_size} tokens, but the model has "
            f"{config.vocab_size}: restore all files of this directory from the same run"
        )
    try:
        # Count the tensors first: with a damaged n_layer, building the model could take hours.
        if files.count_tensors(weights) != _count_tensors(config):
            raise files.damaged(weights, f"the number of tensors does not match {config}")
        expected = _get_shapes(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # a size is too large for a tensor
        raise files.damaged("config.json", error) from None
    tensors = files.tensors(weights, expected)
    with SkipInit():
        model = build(config)
    model.load_state_dict(tensors)
    model = model.to(device).eval()
    return Checkpoint(model, tokenizer, info.step, info.best, files.checksums[weights])


def _get_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Return the state of a model as meta tensors, which have shapes but use no memory."""
    with torch.device("meta"), SkipInit():
        return build(config).state_dict()


def _count_tensors(config: ModelConfig) -> int:
    """Compute how many tensors a model has, from the counts for two layers and for three layers."""
    if isinstance(config, BigramConfig) or config.n_layer == 1:  # one layer has no skips
        return len(_get_shapes(config))
    two, three = (len(_get_shapes(replace(config, n_layer=n))) for n in (2, 3))
    return two + (config.n_layer - 2) * (three - two)


class SkipInit(TorchFunctionMode):
    """Within this context, torch.nn.init does nothing: the weights come from a file.

    On the meta device, initialisation would import torch's compiler, which takes seconds.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
