"""A run on disk.

    runs/<name>/
      run.json          the resolved configuration, versions, device
      metrics.jsonl     one object a line
      loss.png          the curve
      best/             lowest validation loss: model.safetensors, config.json, tokenizer.json
      last/             the same, where training ended

Safetensors and JSON only: nothing in a run can execute code.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import UserError
from .models import KINDS, Model, ModelConfig, build, kind
from .tokenizers import CharTokenizer

RUNS = Path("runs")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds."""

    model: Model
    tokenizer: CharTokenizer
    step: int
    """Optimizer steps taken."""


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint directory: whole, beside the one that it then replaces."""
    beside = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model = checkpoint.model
    config = {"kind": kind(model.config), **asdict(model.config)}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, beside / "model.safetensors")
    write_json(beside / "config.json", {"model": config, "step": checkpoint.step})
    write_json(beside / "tokenizer.json", checkpoint.tokenizer.to_json())
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(directory, old)
        os.replace(beside, directory)
        shutil.rmtree(old)
    else:
        os.replace(beside, directory)


def load(directory: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint directory, its model in evaluation mode on device. Raises UserError."""
    directory = Path(directory)
    config_file, tokenizer_file = directory / "config.json", directory / "tokenizer.json"
    config = read_json(config_file)
    try:
        step, model_config = int(config["step"]), _model_config(config["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_damaged(config_file, error)) from None
    try:
        tokenizer = CharTokenizer.from_json(read_json(tokenizer_file))
    except UserError as error:
        raise UserError(_damaged(tokenizer_file, error)) from None
    if tokenizer.vocab_size > model_config.vocab_size:
        raise UserError(
            f"{tokenizer_file} has {tokenizer.vocab_size} tokens and the model "
            f"{model_config.vocab_size}: they are not of one run"
        )
    model = build(model_config)
    weights = directory / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(_damaged(weights, error)) from None
    return Checkpoint(model.to(device).eval(), tokenizer, step)


def _model_config(saved: dict[str, Any]) -> ModelConfig:
    saved = dict(saved)
    cls = KINDS[saved.pop("kind")]
    if unknown := saved.keys() - {field.name for field in fields(cls)}:
        raise ValueError(f"unknown field {min(unknown)}")
    return cls(**saved)


def _damaged(file: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{file} is missing or damaged ({reason}): restore it, or train again"


def write_json(file: Path, value: object) -> None:
    """Write one JSON document, indented for people."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object. Raises UserError where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(_damaged(file, error)) from None
    if not isinstance(value, dict):
        raise UserError(_damaged(file, ValueError("not a JSON object")))
    return value


def new_run(out: Path | None, name: str) -> Path:
    """Make a run directory: out, or the first free of runs/NAME, runs/NAME-2, … Raises UserError.

    An out that already holds a run is refused; nothing in it is touched.
    """
    if out is None:
        return _make(_free(RUNS / name))
    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: name another, such as --out {_free(out)}")
    return _make(out)


def _free(directory: Path) -> Path:
    number, free = 1, directory
    while free.exists():
        number += 1
        free = directory.with_name(f"{directory.name}-{number}")
    return free


def _make(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "run.json", {})
    except OSError as error:
        raise UserError(
            f"cannot write in {directory}: {error.strerror}; name another directory with --out"
        ) from None
    return directory


def find_run(run: str | None) -> Path:
    """The run directory that run names, as a path or below runs/; None is the newest.

    Raises UserError unless it holds a checkpoint.
    """
    if run is None:
        saved = sorted(RUNS.glob("*/best/config.json"), key=lambda file: file.stat().st_mtime)
        if not saved:
            raise UserError(f"there is no run in {RUNS}/ yet: make one with `nanogpt train`")
        return saved[-1].parent.parent
    for directory in (Path(run), RUNS / run):
        if (directory / "best").is_dir():
            return directory
    if Path(run).is_dir():
        raise UserError(f"{run} holds no run: its best/ is missing; train one with --out")
    known = ", ".join(sorted(str(file.parent) for file in RUNS.glob("*/best"))) or "none yet"
    raise UserError(f"there is no run {run}; the runs in {RUNS}/: {known}")


def trained_on(run: Path) -> str:
    """The corpus or file that a run learned from. Raises UserError where run.json is damaged."""
    file = run / "run.json"
    try:
        return str(read_json(file)["config"]["data"])
    except (KeyError, TypeError) as error:
        raise UserError(_damaged(file, error)) from None
