"""docs/errors.md lists every error message of the package, and only messages that exist."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

import nanogpt
from nanogpt.cli.main import TOO_LARGE
from tests.platforms import linux_only

HOME = Path(nanogpt.__file__).parent
PAGE = (HOME.parent / "docs" / "errors.md").read_text("utf-8")
MESSAGES, _, REASONS = PAGE.partition("### Missing or damaged")
REASONS, _, REST = REASONS.partition("## Status 1")
Command = Callable[..., tuple[int, str, str]]


def find_rows(text: str) -> list[str]:
    """Return the first column of all tables in a text, without the backticks."""
    return [row[1] for row in re.findall(r"^\| (`+) ?(.+?) ?\1 \| ", text, re.MULTILINE)]


def make_patterns(message: ast.expr) -> list[str]:
    """Make a regular expression for each form of a message; `(.*)` stands for inserted values."""
    match message:
        case ast.Constant(str(text)):
            return [re.escape(text)]
        case ast.JoinedStr(values):
            parts = (
                re.escape(str(value.value)) if isinstance(value, ast.Constant) else "(.*)"
                for value in values
            )
            return ["".join(parts)]
        case ast.BinOp(left, ast.Add(), right):
            return [a + b for a in make_patterns(left) for b in make_patterns(right)]
        case ast.IfExp(_, body, orelse):
            return make_patterns(body) + make_patterns(orelse)
        case _:
            return ["(.*)"]


JOINED = "Stopped", "Lost"
"""Exceptions that join all of their arguments into one message."""


def find_patterns(*calls: str) -> Iterator[str]:
    """Yield the patterns of the messages in all calls of these functions or classes."""
    for file in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in calls:
                # The message is the last argument, or all arguments of the classes in JOINED.
                parts = node.args if ast.unparse(node.func) in JOINED else node.args[-1:]
                yield from map("".join, product(*map(make_patterns, parts)))


MESSAGE_PATTERNS = {
    pattern
    for pattern in find_patterns("UserError", *JOINED, "ValueError", "super().__init__")
    if pattern.replace("(.*)", "").strip("\\ :") and "tokens\\ are\\ more" not in pattern
}
REASON_PATTERNS = set(find_patterns("damaged_error", "self.damaged", "files.damaged")) - {"(.*)"}
PAGE_PATTERNS = {
    re.escape(text)
    for text in re.findall(r'"([a-z][^"]*: [^"]*)"', (HOME / "lab/page/api.js").read_text("utf-8"))
}
PATTERNS = MESSAGE_PATTERNS | REASON_PATTERNS | PAGE_PATTERNS
TOO_LARGE_ROW = TOO_LARGE.format(size="372.53 GiB")
OTHER_MESSAGES = (
    "--train.steps is 'many'",
    "interrupted",
    TOO_LARGE_ROW,
)


@pytest.mark.parametrize("row", find_rows(MESSAGES + REST) + find_rows(REASONS))
def test_every_row_of_the_page_is_a_message(row: str) -> None:
    message = row.removeprefix("--teachers ")  # the parser writes the option before a message
    assert row.startswith(OTHER_MESSAGES) or any(re.fullmatch(p, message) for p in PATTERNS)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_every_message_is_on_the_page(pattern: str) -> None:
    rows = find_rows(PAGE)
    assert any(re.fullmatch(f"(--teachers )?{pattern}", row) for row in rows)


def test_the_search_finds_messages() -> None:
    assert len(MESSAGE_PATTERNS) > 50
    assert len(REASON_PATTERNS) > 8
    assert len(PAGE_PATTERNS) == 4


@pytest.mark.parametrize(
    "command", ["train --train.stps 3", "train --train.steps", "train --train.steps many"]
)
def test_messages_of_the_parser_are_on_the_page(nanogpt: Command, command: str) -> None:
    _, _, err = nanogpt(*command.split())
    assert err.removeprefix("nanogpt: ").strip() in find_rows(PAGE)


LIMIT = """
import re, resource, sys, torch
from pathlib import Path
from nanogpt.api import load
from nanogpt.cli import train
from nanogpt.cli.main import main
def limit_memory(more):
    used = re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    resource.setrlimit(resource.RLIMIT_AS, ((int(used) << 10) + (more << 20), -1))
"""
"""A program that defines limit_memory(), which allows only a number of MiB more memory."""
WITH_LITTLE_MEMORY = f"{LIMIT}limit_memory(400)\nmain(sys.argv[1:])"
"""A program that runs a command with little memory."""
WITH_MATPLOTLIB = (
    f"from nanogpt.runs.plot import make_figure\nmake_figure(1, 1)\n{WITH_LITTLE_MEMORY}"
)
"""The same, but matplotlib already has the memory that it needs to draw the plot of a run."""
WITHOUT_MEMORY_FOR_A_SAMPLE = f"""{LIMIT}
def limit_memory_and_load(*arguments):
    limit_memory(0)
    return load(*arguments)
train.load = limit_memory_and_load
main(sys.argv[1:])
"""
"""A program that runs a command; after the training, it cannot use more memory."""


SMALL_RUN = [
    *("train", "tiny", "--device", "cpu", "--precision", "float32", "--sample-tokens", "0"),
    *("--train.steps", "1", "--model.n-head", "2"),
]


def run_with_little_memory(*arguments: str, program: str = WITH_LITTLE_MEMORY) -> str:
    """Run a command with little memory; return its error, or "" if it succeeds.

    In the returned error, the amount of memory is replaced by the amount in docs/errors.md.
    """
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == bool(done.stderr), done.stderr
    memory = r"(?<=out of memory: )([\d.]+ \w+|an unknown amount)"
    return re.sub(memory, "372.53 GiB", done.stderr).removeprefix("nanogpt: ").strip()


@linux_only
@pytest.mark.slow
def test_the_error_of_a_too_large_model_is_on_the_page(text_file: Path) -> None:
    flags = [*SMALL_RUN, "--data", str(text_file), "--model.n-layer", "1"]
    error = run_with_little_memory(*flags, "--model.n-embd", "4096")
    assert error == TOO_LARGE_ROW
    assert TOO_LARGE_ROW in find_rows(PAGE)
    assert not Path("runs").exists()
    flags += ["--model.n-embd", "16"]  # a smaller model
    assert not run_with_little_memory(*flags, program=WITH_MATPLOTLIB)


@linux_only
@pytest.mark.slow
def test_smaller_parts_of_a_batch_need_less_memory(text_file: Path) -> None:
    """Run the command that each error shows, until the parts are small enough."""
    sizes = "--model.block-size", "256", "--model.n-embd", "64", "--train.batch-size", "128"
    command, tries = [*SMALL_RUN, "--data", str(text_file), "--out", "mine", *sizes], 0
    program = WITH_LITTLE_MEMORY
    while error := run_with_little_memory(*command, program=program):
        row = "out of memory: 372.53 GiB more was requested; the same batch in smaller parts needs "
        assert error.startswith(row), error
        command, tries = error.partition(": nanogpt ")[2].split(), tries + 1
        command += ["--sample-tokens", "0"]
        program = WITH_MATPLOTLIB
    assert 1 <= tries < 5
    assert command[:3] == ["train", "--resume", "mine"]


@linux_only
@pytest.mark.slow
def test_without_memory_for_the_sample_the_run_is_complete(text_file: Path) -> None:
    """The note shows a command that generates the sample."""
    flags = [*SMALL_RUN, "--data", str(text_file), "--sample-tokens", "9"]
    command = [sys.executable, "-c", WITHOUT_MEMORY_FOR_A_SAMPLE, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    row = (
        "out of memory: an unknown amount more was requested for the sample; the run is complete, "
    )
    assert done.stderr == f"nanogpt: {row}so generate text with: nanogpt sample runs/tiny\n"
    assert done.returncode == 0
    sample = [sys.executable, "-m", *done.stderr.partition("with: ")[2].split()]
    assert subprocess.run(sample, capture_output=True).returncode == 0


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--model.n-embd", "--model.block-size"])
def test_a_smaller_model_or_block_needs_less_memory(text_file: Path, option: str) -> None:
    flags = [*SMALL_RUN, "--data", str(text_file), "--train.batch-size", "1"]
    flags += ["--model.n-layer", "150", "--model.n-embd", "64", "--model.block-size", "512"]
    error = run_with_little_memory(*flags)
    assert error.startswith("out of memory: 372.53 GiB more was requested, and each part of the")
    assert option in error
    assert not run_with_little_memory(*flags, option, "16", program=WITH_MATPLOTLIB)


def test_every_message_is_under_its_status() -> None:
    for name, heading in (("UserError", "## Status 2"), ("Stopped", "## Status 1")):
        section = PAGE.partition(heading)[2].partition("\n## ")[0]
        for pattern in find_patterns(name):
            if pattern.replace("(.*)", "").strip("\\ :;"):
                assert any(re.fullmatch(pattern, row) for row in find_rows(section)), pattern
