"""The command `nanogpt inspect`."""

import os
import re
import threading
from pathlib import Path

import pytest

from nanogpt.api import load
from nanogpt.models import GPTConfig, build
from nanogpt.reports.inspection import inspect_text, render_page
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.text.tokenizers import CharTokenizer
from tests.platforms import needs_links, posix_only

from .answers import Command, assert_refused

LETTERS = CharTokenizer("\n abcdefgh")
MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=LETTERS.vocab_size)
TEXT = "bad cab\nhead"


@pytest.fixture
def run() -> Path:
    save_checkpoint(Path("runs/one/best"), Checkpoint(build(MODEL), LETTERS, 7))
    return Path("runs/one")


def test_inspect_writes_a_page_without_links(nanogpt: Command, run: Path) -> None:
    status, out, err = nanogpt("inspect", "one", "--prompt", TEXT, "--device", "cpu")
    assert (status, out, err) == (0, "runs/one/inspect.html\n", "")
    trained = load(run, "cpu")
    N = sum(p.numel() for p in trained.model.parameters())
    title = f"runs/one: GPT, {N:,} parameters, step 7"
    found = inspect_text(trained.model, trained.tokenizer, TEXT, title)
    written = (run / "inspect.html").read_text("utf-8")
    assert written == render_page(found)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=|@import", written)
    status, out, _ = nanogpt("inspect", "--out", "other.html", "--device", "cpu")
    assert (status, out) == (0, "other.html\n")
    _, _, err = nanogpt("inspect", "one", "--prompt", "abc" * 9, "--device", "cpu")
    assert err == "nanogpt: the model sees the last 16 of the prompt's 27 tokens\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("one", "--prompt", "Q"), "'Q'"),
        (("two",), "there is no run 'two'"),
        (("one", "--out", "no/where.html"), "cannot write no/where.html"),
        (("one", "--out", "."), ". is a directory: name a file with --out"),
        (("one", "--out", "runs"), "runs is a directory"),
    ],
)
def test_a_mistake_prints_one_line(
    nanogpt: Command, run: Path, flags: tuple[str, ...], says: str
) -> None:
    assert_refused(nanogpt("inspect", *flags), says)


@needs_links
def test_a_link_is_followed(nanogpt: Command, run: Path) -> None:
    Path("real.html").write_text("old")
    Path("page.html").symlink_to("real.html")
    assert nanogpt("inspect", "one", "--prompt", TEXT, "--out", "page.html")[0] == 0
    assert Path("page.html").is_symlink()
    assert "one: GPT" in Path("real.html").read_text("utf-8")


@posix_only
def test_a_pipe_receives_the_page_and_stays_a_pipe(nanogpt: Command, run: Path) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    assert nanogpt("inspect", "one", "--prompt", TEXT, "--out", "pipe")[0] == 0
    reader.join()
    assert Path("pipe").is_fifo()
    assert b"one: GPT" in received[0]
    assert nanogpt("inspect", "one", "--prompt", TEXT, "--out", os.devnull)[0] == 0
    assert Path(os.devnull).is_char_device()
