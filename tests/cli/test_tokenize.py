"""The command `nanogpt tokenize`."""

import io
import json
from pathlib import Path

import pytest

from nanogpt.cli.tokenize import render_tokens
from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.text.glyphs import decode_token_bytes
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, make_tokenizer
from tests.families import word_level

from .answers import Command, assert_refused


def test_tokenize_shows_each_token_with_its_id(
    nanogpt: Command, run: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = nanogpt("tokenize", "--tokenizer", "byte", "aé\n b")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[:2] == [["a", "\\xc3", "\\xa9", "↵"], ["97", "195", "169", "10"]]
    assert rows[2:4] == [["·", "b"], ["32", "98"]]
    assert "6 tokens for 6 bytes: 1.00 bytes per token; vocabulary 256" in out
    answer = json.loads(nanogpt("tokenize", "--tokenizer", run, "bad,", "--json")[1])
    assert answer["tokens"] == ["b", "a", "d", ","]
    assert answer["ids"] == load_checkpoint(run / "best").tokenizer.encode("bad,")
    how = ("--tokenizer", "bpe:300", "--data", text_file, "bad,", "--json")
    # The added text is in the validation split, so the tokenizer is not trained on it.
    text = text_file.read_text() + "bad," * 160
    text_file.write_text(text)
    learned = make_tokenizer("bpe:300", [], [text[: int(0.9 * len(text))]])
    assert json.loads(nanogpt("tokenize", *how)[1])["ids"] == learned.encode("bad,")
    typed = "bad, é".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    _, out, _ = nanogpt("tokenize", "--tokenizer", "byte", "--json")
    assert json.loads(out)["ids"] == list(typed)
    for arguments, says in (
        (("--tokenizer", "nope", "x"), "there is no tokenizer nope"),
        (("--tokenizer", "bpe:9", "x"), "tokenizer is bpe:9: the first 256 tokens are the bytes"),
        (("--tokenizer", run, "é"), "the tokenizer does not know the character 'é' (U+00E9)"),
    ):
        assert_refused(nanogpt("tokenize", *arguments), says)


def test_each_token_is_above_its_id() -> None:
    lines = render_tokens(CharTokenizer("abc"), [0, 2, 1], 80).plain.split("\n")
    assert [line.split() for line in lines] == [["a", "c", "b"], ["0", "2", "1"]]


def test_lines_end_at_line_breaks_and_at_the_width() -> None:
    text = "ab\ncd" + "e" * 30
    ids = ByteTokenizer().encode(text)
    lines = render_tokens(ByteTokenizer(), ids, 20).plain.split("\n")
    assert all(len(line) <= 20 for line in lines)
    assert lines[0].split() == ["a", "b", "↵"]
    assert [int(i) for line in lines[1::2] for i in line.split()] == ids


def test_wide_characters_take_two_columns() -> None:
    above, below = render_tokens(CharTokenizer("问b"), [1, 0], 80).plain.split("\n")
    assert above == "问 b "
    assert below.rstrip() == "1  0"


def test_white_space_and_control_characters_are_visible() -> None:
    assert decode_token_bytes(b"\xf0") == "\\xf0"
    above = render_tokens(CharTokenizer(" \t\x1b"), [2, 1, 0], 80).plain.split("\n")[0]
    assert above.split() == ["·", "\\u001b", "→"]


def test_text_that_a_tokenizer_loses_is_reported(nanogpt: Command) -> None:
    Path("words.json").write_text(word_level().to_str())
    told = nanogpt("tokenize", "--tokenizer", "words.json", "to be 😀")[1]
    assert "does not reproduce 40.00% of the text" in told
    answer = json.loads(nanogpt("tokenize", "--tokenizer", "words.json", "to be 😀", "--json")[1])
    assert answer["lost_bytes"] == 4
    assert "reproduce" not in nanogpt("tokenize", "--tokenizer", "words.json", "to be")[1]
