"""nanogpt import: make a run from a model in the format of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError, join_command, make_line
from ..interop.importing import import_model as import_run
from .arguments import parse_arguments
from .values import OptionalString, placeholder, positional


@dataclass(frozen=True)
class ImportArgs:
    """Make a run from a GPT-2 or NanoChat model for transformers, or from an export of nanogpt."""

    source: Annotated[OptionalString, positional, placeholder("SOURCE")] = None
    """Folder with config.json, safetensors and a tokenizer; or hf:NAME for a model of the Hugging
    Face Hub."""
    out: Path | None = None
    """Directory of the run. The default is runs/NAME; if that exists, runs/NAME-2, and so on."""


def import_model(args: list[str]) -> None:
    """Make a run and print its directory."""
    options = parse_arguments(ImportArgs(), args, "nanogpt import")
    if not options.source:
        raise UserError(
            "nanogpt import needs a model: name the folder of a model for transformers, or hf:NAME"
        )
    run = import_run(options.source, options.out)
    command = join_command(["nanogpt", "sample", run])
    print(f"saved in {make_line(run)}; generate text with: {command}")
