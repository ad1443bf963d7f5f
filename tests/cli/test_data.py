"""The command `nanogpt data`."""

import json
import os
import re
from pathlib import Path

import pytest

from .answers import Command, assert_refused


def test_data_shows_statistics_and_ngrams(nanogpt: Command, text_file: Path, text: str) -> None:
    status, out, err = nanogpt("data", text_file)
    assert (status, err) == (0, "")
    assert "6,000 bytes, 6,000 characters" in out
    assert re.search(r"trigrams +\d\.\d{4} +\d\.\d{4} +\d\.\d{4}", out)
    answer = json.loads(nanogpt("data", text_file, "--json")[1])
    assert answer["alphabet"] == "".join(sorted(set(text)))
    assert [each["n"] for each in answer["ngrams"]] == [1, 2, 3]
    assert_refused(nanogpt("data", "nope.txt"), "there is no file or corpus nope.txt")


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
    message = "mine.txt already exists: name another file with --save, or delete it first"
    assert_refused(nanogpt("data", text_file, "--save", "mine.txt"), message)
    assert Path("mine.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_save_refuses_a_pipe(nanogpt: Command, text_file: Path) -> None:
    os.mkfifo("pipe")
    assert_refused(nanogpt("data", text_file, "--save", "pipe"), "pipe already exists")


def test_save_names_the_reason_if_the_file_cannot_be_written(
    nanogpt: Command, text_file: Path
) -> None:
    answer = nanogpt("data", text_file, "--save", "missing/copy.txt")
    assert_refused(answer, "cannot write missing")
    assert_refused(answer, "name another file with --save")


def test_save_leaves_no_file_if_the_text_cannot_be_read(nanogpt: Command) -> None:
    folder = Path("tokens")
    folder.mkdir()
    for name in ("train", "val"):
        (folder / f"{name}.bin").write_bytes(bytes(200))
    assert_refused(nanogpt("data", folder, "--save", "copy.txt"), "contains tokens")
    assert not Path("copy.txt").exists()


@pytest.fixture
def address(server: str, text: str) -> str:
    """The URL of the file www/own.txt on a local web server."""
    Path("www/own.txt").write_text(text)
    return f"{server}/own.txt"


def test_refresh_downloads_a_text_again(
    nanogpt: Command, cache: Path, address: str, text: str
) -> None:
    before = nanogpt("data", address)
    Path("www/own.txt").write_text(text[:5000])
    assert nanogpt("data", address) == before  # from the cache
    after = nanogpt("data", address, "--refresh")
    assert "5,000 characters" in after[1]
    assert nanogpt("data", address) == after


@pytest.mark.slow
def test_train_and_eval_refresh_their_text(
    nanogpt: Command, cache: Path, address: str, small: list[str], text: str
) -> None:
    train, file = ("train", "--data", address, *small, "--out"), Path("www/own.txt")
    assert nanogpt(*train, "old")[0] == 0
    file.write_text(text[:5000])
    # Without --split, eval uses the val split of the run's text, but the whole of any other text.
    assert "over 599 tokens" in nanogpt("eval", "old", "--data", address)[1]
    assert "over 4,999 tokens" in nanogpt("eval", "old", "--data", address, "--refresh")[1]
    file.write_text(text[:4000])
    assert nanogpt(*train, "new", "--refresh")[0] == 0
    assert "over 399 tokens" in nanogpt("eval", "new", "--data", address)[1]


def test_refresh_keeps_the_old_text_if_the_download_fails(
    nanogpt: Command, cache: Path, address: str
) -> None:
    file, before = Path("www/own.txt"), nanogpt("data", address)
    for raw in (None, b"", b"<html>", b"\xff"):
        file.unlink() if raw is None else file.write_bytes(raw)
        status, out, err = nanogpt("data", address, "--refresh")
        assert (status, out) == (2, "")
        assert address in err
        assert nanogpt("data", address) == before
    assert len([*cache.iterdir()]) == 1


def test_a_resumed_run_does_not_refresh_its_text(nanogpt: Command, run: Path) -> None:
    answer = nanogpt("train", "--resume", run, "--refresh")
    assert_refused(answer, "--refresh has no effect: a run is resumed with the text that it")
    answer = nanogpt("train", "--resume", run, "--optim.muon-lr", 1)
    assert_refused(
        answer, "--optim.muon-lr has no effect: the optimizer is adamw; leave the option"
    )
