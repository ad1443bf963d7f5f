"""The three exceptions that end a command early, and messages on standard error."""

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
    """A mistake in the input. The message is one line that says what is wrong and what to do.

    The command line prints the message and exits with status 2. An exception whose class is not in
    this module normally means a bug in nanogpt, so its traceback is printed.
    """


class Stopped(RuntimeError):
    """A failure that ends a command, such as a full disk or a loss that is NaN.

    The message is one line that gives the reason and says what to do. The exit status is 1.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason, self.advice = reason, advice


def write_error(run: Path, error: OSError) -> Stopped:
    """Return the error for a failed write in the run directory `run`."""
    reason = f"cannot write in {run} ({error.strerror or error})"
    remedy = "make it writable" if is_denied(error) else "free disk space"
    if not os.path.exists(run / "last"):
        return Stopped(reason, f": {remedy}, then start again")
    return Stopped(reason, f": {remedy}, then resume with: {resume_command(run)}")


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. The exit status is 128 + signal number.

    `saved` names what was saved. `command` is the command line that resumes the work. Both can
    be "".
    """

    def __init__(self, number: signal.Signals, saved: str = "", command: str = "") -> None:
        message = "interrupted"
        message += f"; saved {saved}" if saved else ""
        message += f"; resume with: {command}" if command else ""
        super().__init__(message)
        self.number, self.saved = number, saved
        self.status = 128 + number


def is_denied(error: OSError) -> bool:
    """Return whether the cause of an error is a missing permission or a read-only file system."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def access_error(path: object, error: OSError) -> UserError:
    """Return the error for a file or directory that this user has no permission to use."""
    return UserError(
        f"cannot access {path}: {error.strerror}; change its permissions or those of the "
        f"directories above it, or name another path"
    )


def resume_command(run: Path, *options: str) -> str:
    """Return the command line that resumes a run, with these options."""
    return join_command(["nanogpt", "train", "--resume", run, *options])


def join_command(arguments: Sequence[str | Path]) -> str:
    """Join arguments into a command line, quoted for the shell of the operating system.

    A Path that starts with a hyphen becomes ./-NAME, because -NAME would be read as an option.
    """
    words = [f"./{a}" if isinstance(a, Path) and str(a)[0] == "-" else str(a) for a in arguments]
    if os.name == "nt":
        import subprocess  # a slow import that few commands need

        return subprocess.list2cmdline(words)
    return " ".join(
        shlex.quote(word) if word.isprintable() else _quote_bytes(word) for word in words
    )


def _quote_bytes(word: str) -> str:
    """Quote a word that has unprintable characters, such as line breaks, for bash and zsh."""
    kept = {byte: chr(byte) for byte in range(32, 127) if chr(byte) not in "\\'"}
    return "$'" + "".join(kept.get(byte, f"\\x{byte:02x}") for byte in os.fsencode(word)) + "'"


def escape_control(text: str) -> str:
    """Make control characters (except line breaks and tabs) readable: ESC becomes \\x1b.

    A terminal would obey control characters: some of them clear the screen. The function also
    escapes the Unicode line and paragraph separators, and unpaired surrogates, which stand for
    bytes that are not UTF-8.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"
        else c
        for c in text
    )


def make_line(message: object) -> str:
    """Return a message as one readable line, even if a name in it contains line breaks."""
    return escape_control(str(message)).replace("\n", "\\n")


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the known words most similar to `word`.

    Return "" if no known word is similar.
    """
    close = get_close_matches(word, list(known))
    return f"did you mean {' or '.join(close)}?" if close else ""


def print_note(line: str) -> None:
    """Print a note, which is neither an error nor a result, to standard error."""
    print(f"nanogpt: {make_line(line)}", file=sys.stderr)
