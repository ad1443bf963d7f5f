"""Writes a trained model as a new directory, in a format that other programs read."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..runs.checkpoint import Checkpoint, load_checkpoint
from ..runs.run import read_description
from ..system.files import dump_json, remove_if_present, replace_path, sync_to_disk
from .card import make_card
from .extras import unwritable_error
from .hub_tokenizer import convert_tokenizer
from .huggingface import convert_model, write_converted
from .llama_cpp import write_gguf
from .onnx import write_onnx

Format = Literal["hf", "gguf", "onnx"]


def export(run: Path, to: Format, directory: Path) -> bool:
    """Write the best model of a run to a new directory. After an error, nothing is left.

    Returns whether the directory contains code that computes the model. Raises UserError if the
    directory exists, or if the format has no such model or tokenizer; raises Stopped if writing
    fails.
    """
    if os.path.lexists(directory):
        raise UserError(f"{directory} exists: name a new directory with --out")
    checkpoint = load_checkpoint(run / "best")
    new = directory.with_name(f".{directory.name}.new")
    created = [parent for parent in directory.parents if not parent.exists()]
    try:
        remove_if_present(new)
        new.mkdir(parents=True)
        has_code = WRITERS[to](run, checkpoint, directory, new)
        for file in (*new.iterdir(), new):
            sync_to_disk(file)
        replace_path(new, directory)
        sync_to_disk(directory.parent)
    except BaseException as error:
        remove_if_present(new)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise unwritable_error(directory, error) from None
        raise
    return has_code


def _write_hf(run: Path, checkpoint: Checkpoint, directory: Path, new: Path) -> bool:
    """Write the files that the library transformers opens, and a model card."""
    converted = convert_model(checkpoint.model)
    has_code = bool(converted.code)
    card = make_card(
        run.resolve().name, str(directory), checkpoint, read_description(run), has_code
    )
    (new / "README.md").write_bytes(card.encode())
    write_converted(new, converted, checkpoint.tokenizer, checkpoint.model.config.block_size)
    return has_code


def _write_gguf(run: Path, checkpoint: Checkpoint, _: Path, new: Path) -> bool:
    """Write one file, which llama.cpp opens."""
    name = run.resolve().name
    write_gguf(new / f"{name}.gguf", checkpoint.model, checkpoint.tokenizer, name)
    return False


def _write_onnx(_: Path, checkpoint: Checkpoint, __: Path, new: Path) -> bool:
    """Write the model as a graph, and the tokenizer for the library tokenizers."""
    tokenizer = convert_tokenizer(checkpoint.tokenizer)
    (new / "tokenizer.json").write_bytes(dump_json(tokenizer))
    write_onnx(new / "model.onnx", checkpoint.model)
    return False


WRITERS: dict[Format, Callable[[Path, Checkpoint, Path, Path], bool]] = {
    "hf": _write_hf,
    "gguf": _write_gguf,
    "onnx": _write_onnx,
}
