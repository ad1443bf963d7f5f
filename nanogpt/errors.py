"""The three ways in which a command can end early, and messages on standard error."""

import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from unicodedata import category


class UserError(ValueError):
    """A mistake in the input. The message is one line: what is wrong, and what to do.

    The command line prints the message and exits with status 2. An exception of a class that is not
    in this module is a bug in nanogpt and keeps its traceback.
    """


class Stopped(RuntimeError):
    """A failure that ends a run: a full disk, a loss that is NaN, too little memory.

    The message is one line: the reason, and the advice what to do. Exit status 1.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


def write_error(run: Path, error: OSError) -> Stopped:
    """The error of a run directory in which a file cannot be written: a full disk, for example."""
    reason = f"cannot write in {run} ({error.strerror or error})"
    if not (run / "last").exists():
        return Stopped(reason, ": make room, then start again")
    return Stopped(reason, f": make room, then resume with: nanogpt train --resume {run}")


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end, and the run saved a checkpoint. Exit status 128 + signal."""

    def __init__(self, number: signal.Signals, saved: str, command: str) -> None:
        super().__init__(f"interrupted; saved {saved}; resume with: {command}")
        self.number, self.saved = number, saved
        self.status = 128 + number


def is_broken_pipe(error: OSError) -> bool:
    """Whether the reader of standard output, such as `head`, has ended.

    Windows reports this as an invalid argument.
    """
    if os.name == "nt" and error.errno == errno.EINVAL:
        return error.filename is None
    return isinstance(error, BrokenPipeError)


def join_command(arguments: Sequence[str]) -> str:
    """A command line with these arguments, quoted as the shell of the system expects it."""
    if os.name == "nt":
        import subprocess  # takes a while, and most commands need none

        return subprocess.list2cmdline(arguments)
    return shlex.join(arguments)


def escape_control(text: str) -> str:
    """The text with its control characters, except line breaks and tabs, as escape sequences.

    Printed as they are, they could change the state of a terminal.
    """
    return "".join(
        c if category(c) != "Cc" or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text
    )


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """The question "did you mean …?" with the known words most like word; "" if none is."""
    close = get_close_matches(word, list(known))
    return f"did you mean {' or '.join(close)}?" if close else ""


def print_note(line: str) -> None:
    """Print a message that is neither an error nor a result to standard error."""
    print(f"nanogpt: {escape_control(line)}", file=sys.stderr)
