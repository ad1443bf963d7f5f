"""How a command can end early, and notes: what goes to standard error.

The user's mistake, a run that had to stop, an interruption.
"""

import signal
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from unicodedata import category


class UserError(ValueError):
    """A mistake of the user's. The message is one line: what was wrong and what to do.

    The command line prints it and exits with status 2; every exception that is not of this module
    is a bug of ours and keeps its traceback.
    """


class Stopped(RuntimeError):
    """Something that nobody asked for made it impossible to go on: a full disk, a NaN.

    The message is one line: what happened, then what is safe and what usually helps. Exit status 1.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


def write_error(run: Path, error: OSError) -> Stopped:
    """The error of a disk that is full, or that a run may not write on any more."""
    what = f"cannot write in {run} ({error.strerror or error})"
    if not (run / "last").exists():
        return Stopped(what, ": make room, then begin again")
    return Stopped(what, f": make room, then go on with: nanogpt train --resume {run}")


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end, and it has saved where it is. Exit status 128 + signal."""

    def __init__(self, number: signal.Signals, saved: str, command: str) -> None:
        super().__init__(f"interrupted and saved {saved}; go on with: {command}")
        self.number, self.saved = number, saved
        self.status = 128 + number


def escape_control(text: str) -> str:
    """Text with the signs that steer a terminal written out, but for line breaks and tabs."""
    return "".join(
        c if category(c) != "Cc" or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text
    )


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """The question whether another word was meant; empty where none is near."""
    close = get_close_matches(word, list(known))
    return f"did you mean {' or '.join(close)}?" if close else ""


def print_note(line: str) -> None:
    """Tell the user something that is no error and no answer."""
    print(f"nanogpt: {escape_control(line)}", file=sys.stderr)
