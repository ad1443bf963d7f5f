"""nanogpt inspect: show on a web page how a model processes a text."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..api import load
from ..errors import UserError, make_line, print_note
from ..reports.inspection import SHOWN_TOKENS, inspect_text, render_page
from ..runs.directory import find_run
from ..system.devices import limit_threads
from ..system.files import has_access, is_directory, write_output
from .arguments import parse_arguments
from .values import Run


@dataclass(frozen=True)
class InspectArgs:
    """Show on a web page how a model processes a text. The page needs no network.

    It shows the attention of every head, the predictions at every position, the predictions of
    every layer, and the embeddings of the tokens.
    """

    run: Run = None
    """Run directory, or its name below runs/; by default the newest run."""
    prompt: str = ""
    """Text to process; by default the model generates a text."""
    out: Path | None = None
    """File to write the page to; by default inspect.html in the run directory, or in the current
    directory if you have no permission to write in the run directory."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def inspect(args: list[str]) -> None:
    """Write the page and print its path."""
    options = parse_arguments(InspectArgs(), args, "nanogpt inspect")
    limit_threads()
    run = find_run(options.run)
    out = options.out or Path(run if has_access(run, os.W_OK) else "", "inspect.html")
    if is_directory(out):
        raise UserError(f"{out} is a directory: name a file with --out")
    trained = load(run, options.device, "float32")
    block_size = trained.model.config.block_size
    text = options.prompt or trained.generate(max_new_tokens=min(64, block_size))
    if (tokens := len(trained.tokenizer.encode(text))) > block_size:
        print_note(f"the model sees the last {block_size} of the prompt's {tokens:,} tokens")
    if min(tokens, block_size) > SHOWN_TOKENS:
        print_note(f"the page shows only the last {SHOWN_TOKENS} tokens")
    parameters = sum(p.numel() for p in trained.model.parameters())
    kind = type(trained.model).__name__
    title = f"{run}: {kind}, {parameters:,} parameters, step {trained.step:,}"
    title += f", validation loss {trained.best.val_loss:.4f}" if trained.best else ""
    title += "" if options.prompt else "; generated text"
    inspection = inspect_text(trained.model, trained.tokenizer, text, title)
    try:
        write_output(out, render_page(inspection).encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; name another file with --out"
        ) from None
    print(make_line(out) if sys.stdout.isatty() else out)
