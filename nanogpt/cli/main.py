"""Runs the command named in the arguments, and turns an error into one line and an exit status."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import (
    Interrupted,
    Stopped,
    UserError,
    access_error,
    is_denied,
    make_line,
    suggest_nearest,
)
from ..system import distributed, launch
from ..system.interrupts import raise_interrupted
from ..version import VERSION
from .output import guard_streams

COMMANDS = {
    "train": ("train", "train a model, or resume a run"),
    "sample": ("sample", "generate text with a trained model"),
    "eval": ("evaluate", "measure the loss of a trained model on a whole split"),
    "data": ("data", "show statistics of a text, and the losses of n-gram models"),
    "tokenize": ("tokenize", "show how a tokenizer encodes a text"),
    "inspect": ("inspect", "show attention, predictions and embeddings on a web page"),
    "lab": ("lab", "train models and look inside them, on a local web page"),
    "export": ("export", "write a model for transformers, llama.cpp or ONNX Runtime"),
    "import": ("import_model", "make a run from a model for transformers, such as GPT-2"),
    "explain": ("explain", "show what a run needs: parameters, memory, operations, time"),
    "study": ("study", "train many models for a study: ladder, scaling or distillation"),
    "presets": ("presets", "list the presets of train"),
}
"""Maps each command to its module, whose main function has the same name, and to its help text."""

SHARED = {"train", "eval"}
"""The commands that several processes can run together."""

TOO_LARGE = "out of memory: {size} more was requested; use a smaller model, text or batch"


@distributed.exit_promptly()
@guard_streams()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit. If torchrun started several processes, the first one prints errors.

    The exit status is 0 after success, 1 after a failure, and 2 after a mistake in the input. If a
    signal ends the command, the exit status is 128 + signal number. Each error is one line on
    standard error.
    """
    try:
        with raise_interrupted():
            try:
                _run(list(sys.argv[1:] if argv is None else argv))
            finally:
                sys.stdout.flush()
    except (UserError, Stopped) as error:
        if launch.get_rank() == 0:
            print(f"nanogpt: {make_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except (RuntimeError, MemoryError) as error:
        from ..system.devices import requested_memory

        size = requested_memory(error)
        if size is None:
            raise
        print(f"nanogpt: {TOO_LARGE.format(size=size)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        if launch.get_rank() == 0:
            print(f"\nnanogpt: {make_line(interruption) or 'interrupted'}", file=sys.stderr)
        sys.exit(interruption.status if isinstance(interruption, Interrupted) else 130)
    except OSError as error:
        if not is_denied(error) or not error.filename:
            raise
        print(f"nanogpt: {make_line(access_error(error.filename, error))}", file=sys.stderr)
        sys.exit(2)


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_format_usage())
    elif args[0] == "--version":
        print(f"nanogpt {VERSION}")
    elif launch.get_size() > 1 and args[0] in set(COMMANDS) - SHARED:
        raise UserError(
            f"torchrun can only start nanogpt train and eval: run nanogpt {args[0]} without it"
        )
    elif args[0] in COMMANDS:
        if args[0] in SHARED:
            launch.require_valid_variables()
        if launch.get_rank():  # the first process prints
            sys.stdout = open(os.devnull, "w", encoding="utf-8", newline="")  # noqa: SIM115
        module = COMMANDS[args[0]][0]  # imported late: many commands load torch, which is slow
        getattr(import_module(f".{module}", __package__), module)(args[1:])
    else:
        raise UserError(
            f"there is no command {args[0]!r}: "
            + (suggest_nearest(args[0], COMMANDS) or f"use one of {', '.join(COMMANDS)}")
        )


def _format_usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items())
    return f"""usage: nanogpt COMMAND [OPTIONS]

A GPT that one person can read in one sitting, and train in minutes.

commands:
{commands}

`nanogpt COMMAND --help` shows the options of a command; `nanogpt --version` shows the version.
`nanogpt train` without options trains on Tiny Shakespeare and generates a sample."""
