"""nanogpt data --save: it writes the text of a corpus, and never replaces a file."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


def test_save_writes_the_text_as_it_is(nanogpt: Command) -> None:
    raw = "Line one.\r\nLine two: é 问.\n".encode() * 40
    Path("windows.txt").write_bytes(raw)
    status, out, err = nanogpt("data", "windows.txt", "--save", "copy.txt", "--json")
    assert (status, err) == (0, "nanogpt: the text is in copy.txt\n")
    assert json.loads(out)["bytes"] == len(raw)
    assert Path("copy.txt").read_bytes() == raw


def test_save_joins_several_files(nanogpt: Command) -> None:
    for name in ("a", "b"):
        Path(f"{name}.txt").write_text(name * 50)
    assert nanogpt("data", "?.txt", "--separator", "|", "--save", "both.text")[0] == 0
    assert Path("both.text").read_text() == "a" * 50 + "|" + "b" * 50


def test_save_refuses_an_existing_file(nanogpt: Command, text_file: Path) -> None:
    Path("mine.txt").write_text("mine")
    status, out, err = nanogpt("data", text_file, "--save", "mine.txt")
    message = "mine.txt already exists: name another file with --save, or delete it first"
    assert (status, out, err) == (2, "", f"nanogpt: {message}\n")
    assert Path("mine.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_save_refuses_a_pipe(nanogpt: Command, text_file: Path) -> None:
    os.mkfifo("pipe")
    status, _, err = nanogpt("data", text_file, "--save", "pipe")
    assert status == 2
    assert "pipe already exists" in err


def test_save_names_the_reason_if_the_file_cannot_be_written(
    nanogpt: Command, text_file: Path
) -> None:
    status, _, err = nanogpt("data", text_file, "--save", "missing/copy.txt")
    assert status == 2
    assert "cannot write missing" in err
    assert "name another file with --save" in err


def test_save_leaves_no_file_if_the_text_cannot_be_read(nanogpt: Command) -> None:
    folder = Path("tokens")
    folder.mkdir()
    for name in ("train", "val"):
        (folder / f"{name}.bin").write_bytes(bytes(200))
    status, _, err = nanogpt("data", folder, "--save", "copy.txt")
    assert status == 2
    assert "holds tokens" in err
    assert not Path("copy.txt").exists()
