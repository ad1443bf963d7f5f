"""Handles standard streams that are closed, or that cannot be written."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any, TextIO, cast

from ..errors import Stopped, print_note


class Output:
    """Standard output or standard error. All commands print through this class.

    When a write fails, the null device replaces the stream, and `lost` is called with the error.
    """

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None]) -> None:
        self.stream, self.lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write everything that is in the buffer of the stream."""
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.lost(error)


@contextmanager
def guard_streams() -> Iterator[None]:
    """In this context, a standard stream that is closed or fails causes no traceback.

    A stream that is already closed is replaced with the null device. If the program that reads
    standard output has exited, the command ends with status 0. If writing to standard output fails
    for another reason, the context raises Stopped. If writing to standard error fails, the message
    is dropped.
    """
    null = partial(open, os.devnull, encoding="utf-8", newline="")
    streams = sys.stdin, sys.stdout, sys.stderr
    with ExitStack() as stack:
        sys.stdin = sys.stdin or stack.enter_context(null("r"))
        sys.stdout = sys.stdout or stack.enter_context(null("w"))
        sys.stderr = sys.stderr or stack.enter_context(null("w"))
        # The input may not be UTF-8, and the terminal may be unable to show some characters.
        errors = ("surrogateescape", "backslashreplace", "backslashreplace")
        for stream, handler in zip((sys.stdin, sys.stdout, sys.stderr), errors, strict=True):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=handler)
        output = cast("TextIO", Output(sys.stdout, _end_command))
        messages = cast("TextIO", Output(sys.stderr, lambda _: None))
        try:
            with redirect_stderr(messages), redirect_stdout(output):
                yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams


def _end_command(error: OSError) -> None:
    if is_broken_pipe(error):
        sys.exit()
    reason = f"cannot write to standard output ({error.strerror})"
    raise Stopped(reason, ": redirect it to another file")


def _continue_training(error: OSError) -> None:
    print_note(f"cannot write to standard output ({error.strerror}); the training continues")


def train_without_output() -> None:
    """From now on, if writing to standard output fails, print a note and continue the training."""
    if isinstance(output := cast("object", sys.stdout), Output):
        output.lost = _continue_training


def is_broken_pipe(error: OSError) -> bool:
    """Return whether `error` means that the program that reads standard output has exited.

    Windows reports such an exit as an invalid argument.
    """
    is_invalid = os.name == "nt" and error.errno == errno.EINVAL
    return is_invalid or isinstance(error, BrokenPipeError)
