"""nanogpt export: write a trained model in a format that other programs read."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import make_line, print_note
from ..interop.export import Format
from ..interop.export import export as export_run
from ..interop.upload import upload_folder
from ..runs.directory import find_run
from .arguments import parse_arguments
from .values import Run


@dataclass(frozen=True)
class ExportArgs:
    """Write a trained model in a format that other programs read."""

    run: Run = None
    """Run directory, or its name below runs/; by default the newest run."""
    to: Format = "hf"
    """hf: a folder for the library transformers; gguf: a file for llama.cpp; onnx: a graph for
    ONNX Runtime and others."""
    out: Path | None = None
    """New directory. The default is RUN/FORMAT, for example runs/tiny/hf."""
    push: str | None = None
    """Also upload the folder to this model of the Hugging Face Hub, such as me/tiny."""

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        is_unused = name == "push" and self.to != "hf"
        return "it uploads folders for transformers, so it needs --to hf" if is_unused else ""


def export(args: list[str]) -> None:
    """Write the best model of a run to a new directory, and print its path."""
    options = parse_arguments(ExportArgs(), args, "nanogpt export")
    run = find_run(options.run)
    directory = options.out or run / options.to
    has_code = export_run(run, options.to, directory)
    if has_code:
        print_note(
            "the folder contains the code of the model: to run it, transformers needs "
            "trust_remote_code=True"
        )
    print(make_line(directory))
    if options.push:
        print(upload_folder(directory, options.push))
