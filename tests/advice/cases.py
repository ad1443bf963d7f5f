"""Helpers for the tests that follow the advice in error messages."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from nanogpt.errors import Stopped, UserError

from ..test_errors import MESSAGES, OTHER_MESSAGES, PATTERNS, REST, find_rows

Action = str | Callable[..., object]
Command = Callable[..., tuple[int, str, str]]

ROWS = find_rows(MESSAGES + REST)


@dataclass(frozen=True)
class Case:
    """A mistake of a user, and the action that the resulting error advises."""

    row: str
    """The beginning of the line in docs/errors.md that lists the error."""
    mistake: Action
    """A command line without the word `nanogpt`, or a function."""
    advised: Action
    """The command or function that follows the advice.

    The first group of `named` replaces `{0}` in the command, or is the argument of the function.
    """
    named: str = ""
    """A regular expression for the message; its first group is the part that the advice needs."""
    rest: str = ""
    """The beginning of the error of `advised`; empty if `advised` must succeed."""


SMALL = (
    "--device cpu --sample-tokens 0 --model.n-layer 1 --model.n-head 2 --model.n-embd 16 "
    "--model.block-size 16 --train.steps 20 --train.eval-every 10 --train.batch-size 4"
)
TRAIN = f"train --data words.txt {SMALL}"
RESUME = "train --resume tiny --sample-tokens 0 --train.steps 22"
STOP = "--device nope"
"""With this option, a command parses its arguments, then stops with the error NO_DEVICE."""
NO_DEVICE = "there is no device 'nope'"


def make_files() -> None:
    """In the working directory, create the files that the cases read."""
    Path("src/deep").mkdir(parents=True)
    Path("src/deep/a.rs").write_text("fn main() {}")
    Path("empty").mkdir()
    rows = {"id": 1, "body": "one", "title": "two"}
    Path("rows.jsonl").write_text(json.dumps(rows))
    parquet.write_table(
        pyarrow.table({key: [value] for key, value in rows.items()}), "rows.parquet"
    )


def get_message(nanogpt: Command, action: Action, *named: str) -> str:
    """Run a command or a function; return its error, or "" if it succeeds."""
    if isinstance(action, str):
        status, _, err = nanogpt(*shlex.split(action.format(*named)))
        line = err.strip().rpartition("\n")[2]
        assert status == 0 or line.startswith("nanogpt: "), err
        return line.removeprefix("nanogpt: ") if status else ""
    try:
        action(*named)
    except (UserError, ValueError, Stopped) as error:
        return str(error)
    return ""


def is_row(message: str, beginning: str) -> bool:
    """Return whether a message fits the line in docs/errors.md that begins with `beginning`.

    The message may contain a flag (--top-k) where the line contains a parameter (top_k).
    """
    named = re.sub(r"--([a-z-]+)", lambda match: match[1].replace("-", "_"), message)
    row = next(row for row in ROWS if row.startswith(beginning))
    return (row.startswith(OTHER_MESSAGES) and message.startswith(beginning)) or any(
        re.fullmatch(p, row) and (re.fullmatch(p, message) or re.fullmatch(p, named))
        for p in PATTERNS
    )


def check(nanogpt: Command, case: Case) -> None:
    message = get_message(nanogpt, case.mistake)
    assert message
    assert is_row(message, case.row), message
    found = re.search(case.named, message)
    assert found, message
    rest = get_message(nanogpt, case.advised, *found.groups()[:1])
    assert rest.startswith(case.rest) if case.rest else not rest, rest


def refuse(nanogpt: Command, command: str, row: str) -> str:
    """Run a command and return its error.

    The error must fit the line in docs/errors.md that begins with `row`.
    """
    message = get_message(nanogpt, command)
    assert is_row(message, row), message
    return message


FOLLOWED: list[str] = []


def follows(*rows: str) -> Callable[[Any], Any]:
    """Return a decorator that marks a test as slow.

    Also record `rows`, the lines of docs/errors.md that the test covers.
    """
    FOLLOWED.extend(rows)
    return pytest.mark.slow
