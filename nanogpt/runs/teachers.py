"""Loads the teachers of a run: trained runs whose probabilities a new model learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError, join_command
from ..models import Model
from ..text.tokenizers import Tokenizer
from .checkpoint import load_checkpoint
from .directory import find_run


@dataclass(frozen=True)
class Teacher:
    """A trained model, in evaluation mode."""

    run: Path
    model: Model
    sha256: str
    """SHA-256 of the file with the weights."""


def load_teachers(
    runs: Sequence[Path], tokenizer: Tokenizer, block_size: int, device: torch.device
) -> list[Teacher]:
    """Load the best weights of each run. `runs` has paths, or names of runs in the directory runs/.

    `tokenizer` and `block_size` belong to the model that learns. Raises UserError if a run does not
    exist, is damaged, has another tokenizer, or cannot read block_size tokens.
    """
    teachers = []
    for path in runs:
        run = find_run(str(path))
        checkpoint = load_checkpoint(run / "best", device)
        if checkpoint.tokenizer.to_json() != tokenizer.to_json():
            raise UserError(
                f"the teacher {run} has another tokenizer than the new run: use its tokenizer, "
                f"with --tokenizer {join_command([run])}"
            )
        if checkpoint.model.config.block_size < block_size:
            raise UserError(
                f"the teacher {run} reads {checkpoint.model.config.block_size} tokens, but the "
                f"new model reads {block_size}: use --model.block-size "
                f"{checkpoint.model.config.block_size}, or another teacher"
            )
        model = checkpoint.model.requires_grad_(False)
        teachers.append(Teacher(run, model, checkpoint.weights_sha256))
    return teachers


def require_same_teachers(teachers: Sequence[Teacher], expected: Sequence[str]) -> None:
    """Raise UserError unless the weights of the teachers have the SHA-256 values in `expected`."""
    if len(teachers) != len(expected):
        raise UserError(
            f"the number of --teachers is {len(teachers)}, but this run was started with "
            f"{len(expected)}: name the same runs in the same order, or leave the option out"
        )
    for teacher, sha256 in zip(teachers, expected, strict=True):
        if teacher.sha256 != sha256:
            raise UserError(
                f"{teacher.run}/best/ does not have the weights that this run was started with: "
                f"restore them, or use --teachers to name a run that has them"
            )
