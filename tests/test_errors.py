"""docs/errors.md has every error that a user can meet, and no other."""

import ast
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

import nanogpt
from nanogpt.cli.main import TOO_LARGE

HOME = Path(nanogpt.__file__).parent
PAGE = (HOME.parent / "docs" / "errors.md").read_text("utf-8")
LINES, _, REASONS = PAGE.partition("### Missing or damaged")
REASONS, _, REST = REASONS.partition("## Status 1")
Command = Callable[..., tuple[int, str, str]]


def rows(text: str) -> list[str]:
    """The first column of the tables, as a user sees it."""
    return [row[1] for row in re.findall(r"^\| (`+) ?(.+?) ?\1 \| ", text, re.MULTILINE)]


def patterns(message: ast.expr) -> list[str]:
    """What a message can look like: for each of its forms a regular expression."""
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
            return [one + other for one in patterns(left) for other in patterns(right)]
        case ast.IfExp(_, body, orelse):
            return patterns(body) + patterns(orelse)
        case _:
            return ["(.*)"]


def raised(*calls: str) -> Iterator[str]:
    """The patterns of the messages that are given to a function or class, by any of its names."""
    for file in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in calls:
                # damaged(file, reason) has the message last, Stopped(what, advice) two parts of it
                parts = node.args if ast.unparse(node.func) == "Stopped" else node.args[-1:]
                yield from map("".join, product(*map(patterns, parts)))


OWN = {
    pattern
    for pattern in raised("UserError", "Stopped", "ValueError", "super().__init__")
    if pattern.replace("(.*)", "").strip("\\ :") and "tokens\\ are\\ more" not in pattern
}
IN_BRACKETS = {p for p in raised("damaged_error", "self.damaged", "files.damaged") if p != "(.*)"}
TOO_LARGE_ROW = TOO_LARGE.format(asked="372.53 GiB")
PARSER = "Unrecognized options: ", "Missing value for argument ", "interrupted", TOO_LARGE_ROW


@pytest.mark.parametrize("row", rows(LINES + REST) + rows(REASONS))
def test_every_line_on_the_page_can_be_met(row: str) -> None:
    assert row.startswith(PARSER) or any(re.fullmatch(p, row) for p in OWN | IN_BRACKETS)


@pytest.mark.parametrize("pattern", sorted(OWN | IN_BRACKETS))
def test_every_error_is_on_the_page(pattern: str) -> None:
    assert any(re.fullmatch(pattern, row) for row in rows(PAGE))


def test_there_are_as_many_as_it_seems() -> None:
    assert len(OWN) > 50
    assert len(IN_BRACKETS) > 8


@pytest.mark.parametrize("command", ["train --train.stps 3", "train --train.steps"])
def test_what_the_parser_says_is_on_the_page(nanogpt: Command, command: str) -> None:
    _, _, err = nanogpt(*command.split())
    assert err.removeprefix("nanogpt: ").strip() in rows(PAGE)


def test_a_model_too_large_is_on_the_page(nanogpt: Command, text_file: Path) -> None:
    status, _, err = nanogpt("train", "tiny", "--data", text_file, "--model.n-embd", 2_000_000_000)
    assert status == 1
    assert re.sub(r"[\d.]+ GiB|2\*\*63 bytes", "372.53 GiB", err) == f"nanogpt: {TOO_LARGE_ROW}\n"
    assert TOO_LARGE_ROW in rows(PAGE)
    assert not Path("runs").exists()


def test_every_status_is_the_one_that_it_stands_under(nanogpt: Command) -> None:
    for raising, heading in (("UserError", "## Status 2"), ("Stopped", "## Status 1")):
        section = PAGE.partition(heading)[2].partition("\n## ")[0]
        for pattern in raised(raising):
            if pattern.replace("(.*)", "").strip("\\ :;"):
                assert any(re.fullmatch(pattern, row) for row in rows(section)), pattern
