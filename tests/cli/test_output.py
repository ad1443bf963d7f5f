"""A closed standard stream, a full disk or a pipe without a reader never causes a traceback."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nanogpt.runs.checkpoint import load_checkpoint
from tests.marks import slow
from tests.platforms import linux_only, posix_only

from .answers import Command

FULL = "cannot write to standard output (No space left on device)"


@pytest.fixture
def lose_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that sets sys.stdout to a stream to which writing fails, or to None.

    "pipe" stands for a pipe without a reader, "full" for a full disk, and "closed" for None.
    """
    with ExitStack() as stack:

        def lose(how: str) -> None:
            file: int | str = "/dev/full"
            if how == "pipe":
                reader, file = os.pipe()
                os.close(reader)
            stream = open(file, "w", encoding="utf-8", newline="")  # noqa: SIM115
            stack.callback(stream.close)  # after a failed write, Output writes to the null device
            monkeypatch.setattr("sys.stdout", None if how == "closed" else stream)

        yield lose


@linux_only
@pytest.mark.parametrize("how", ["pipe", slow("closed"), "full"])
def test_a_command_ends_when_its_output_is_lost(
    nanogpt: Command, run: Path, lose_output: Callable[[str], None], how: str
) -> None:
    for command in (
        ("--help",),
        ("train", "--help"),
        ("presets",),
        ("tokenize", "a", "--tokenizer", "byte"),
        ("data", "words.txt"),
        ("data", "words.txt", "--json"),
        ("eval", run, "--device", "cpu"),
        ("inspect", run),
        ("sample", run, "--prompt", "a", "--max-new-tokens", 2),
        ("sample", run, "--prompt", "a", "--max-new-tokens", 2, "--json"),
        ("explain", run, "--json", "--device", "cpu"),
    ):
        lose_output(how)
        message = f"nanogpt: {FULL}: redirect it to another file\n" if how == "full" else ""
        assert nanogpt(*command)[::2] == (1 if message else 0, message), command


@linux_only
@pytest.mark.slow
def test_the_output_of_a_command_can_be_redirected_to_another_file() -> None:
    for file, status in (("/dev/full", 1), ("out.txt", 0)):
        with open(file, "w", encoding="utf-8") as out:
            command = [sys.executable, "-m", "nanogpt", "presets"]
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, FULL in done.stderr) == (status, bool(status))
    assert "tiny" in Path("out.txt").read_text()


@linux_only
@pytest.mark.parametrize("how", ["pipe", slow("closed"), slow("full")])
def test_training_finishes_when_its_output_is_lost(
    nanogpt: Command,
    text_file: Path,
    small: list[str],
    lose_output: Callable[[str], None],
    how: str,
) -> None:
    lose_output(how)
    status, _, err = nanogpt("train", "--data", text_file, "--out", "mine", *small)
    reason = {"pipe": "Broken pipe", "full": "No space left on device"}.get(how)
    note = f"nanogpt: cannot write to standard output ({reason}); the training continues\n"
    assert (status, err) == (0, note if reason else "")
    assert load_checkpoint(Path("mine/last")).step == 20


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "| head -1", "<&-", "2>&-"])
def test_redirections_in_a_shell(
    run: Path, text_file: Path, small: list[str], redirection: str
) -> None:
    train = shlex.join(["train", "--data", str(text_file), "--out", "new", *small])
    for command in (
        train,
        "train --help",
        "sample mine --prompt a --max-new-tokens 5",
        "sample mine --interactive --max-new-tokens 5",
        "eval mine --device cpu",
        "data words.txt",
        "data -",
        "tokenize --tokenizer byte",
        "inspect mine",
        "explain mine --device cpu",
        "presets",
        "study ladder --device cpu --data words.txt --steps 1 --out ladder",
    ):
        line = f"set -o pipefail; {sys.executable} -m nanogpt {command} {redirection}"
        done = subprocess.run(
            ["bash", "-c", line], input="abc def\n", capture_output=True, text=True
        )
        assert re.fullmatch(r"(nanogpt: [^\n]*\n)*", done.stderr), line
        is_training = command.startswith(("train --data", "study"))
        expected = {">/dev/full": 0 if is_training else 1}.get(redirection, 0)
        if redirection == "<&-" and command in ("data -", "tokenize --tokenizer byte"):
            expected = 2
        assert done.returncode == expected, line
    assert load_checkpoint(Path("new/last")).step == 20


@posix_only
@pytest.mark.parametrize("command", ["data -", "tokenize --tokenizer byte"])
def test_an_unreadable_standard_input_is_an_error(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    with open(os.open("input", os.O_WRONLY | os.O_CREAT), encoding="utf-8", newline="") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert nanogpt(*command.split()) == (
            2,
            "",
            "nanogpt: cannot read standard input: Bad file descriptor; name a text file\n",
        )


def test_a_command_leaves_the_standard_streams_as_they_were(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as in a Windows program without a console
        nanogpt("presets")
        assert getattr(sys, name) is None
