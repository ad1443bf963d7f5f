"""The command line: from what was typed to a command, and from what went wrong to one line."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import (
    Interrupted,
    Stopped,
    UserError,
    escape_control,
    is_broken_pipe,
    suggest_nearest,
)

COMMANDS = {
    "train": ("train", "train a model, from nothing to text"),
    "sample": ("sample", "generate text with a trained model"),
    "eval": ("evaluate", "measure a trained model on a whole split"),
    "data": ("data", "show statistics of a text, and the losses of its n-grams"),
    "tokenize": ("tokenize", "show how a tokenizer encodes a text"),
    "inspect": ("inspect", "show attention, predictions and embeddings on a web page"),
    "explain": ("explain", "show what a run needs: parameters, memory, operations, time"),
    "study": ("study", "train many models to answer a question: study ladder, study scaling"),
    "presets": ("presets", "list the presets that train knows"),
}
"""Each command with its module, of which the function has the same name, and its help."""


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items())
    return f"""usage: nanogpt COMMAND [OPTIONS]

A GPT that one person can read in one sitting, and train in minutes.

commands:
{commands}

nanogpt COMMAND --help tells what a command takes; nanogpt --version, which version this is.
`nanogpt train` alone trains on Tiny Shakespeare and ends by writing some."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    Status 0 done, 1 stopped by something that went wrong, 2 a mistake of the user's, each told in
    one line; 130 or 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no crash
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except (UserError, Stopped) as error:
        line = escape_control(str(error)).replace("\n", "\\n")  # a name may have one in it
        print(f"nanogpt: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except (RuntimeError, MemoryError) as error:
        from ..system.devices import requested_memory

        asked = requested_memory(error)
        if asked is None:
            raise
        print(f"nanogpt: {TOO_LARGE.format(asked=asked)}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as interruption:
        print(f"\nnanogpt: {interruption}", file=sys.stderr)
        sys.exit(interruption.status)
    except KeyboardInterrupt:
        print("\nnanogpt: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if not is_broken_pipe(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


TOO_LARGE = "out of memory: {asked} more were asked for; a smaller model, text or batch needs less"


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
    elif args[0] == "--version":
        print(f"nanogpt {__version__}")
    elif args[0] in COMMANDS:
        module = COMMANDS[args[0]][0]  # imported only now: most commands need torch
        getattr(import_module(f".{module}", __package__), module)(args[1:])
    else:
        raise UserError(
            f"there is no command {args[0]!r}: "
            + (suggest_nearest(args[0], COMMANDS) or f"use one of {', '.join(COMMANDS)}")
        )
