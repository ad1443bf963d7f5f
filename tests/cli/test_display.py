"""Tokens as a terminal shows them."""

import pytest

from nanogpt.cli.explain import scaled
from nanogpt.cli.progress import duration
from nanogpt.cli.tokenize import render_tokens
from nanogpt.text.glyphs import decode_token_bytes
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer


def test_a_token_is_above_its_id() -> None:
    lines = render_tokens(CharTokenizer("abc"), [0, 2, 1], 80).plain.split("\n")
    assert [line.split() for line in lines] == [["a", "c", "b"], ["0", "2", "1"]]


def test_lines_break_where_the_text_does_and_where_the_screen_ends() -> None:
    text = "ab\ncd" + "e" * 30
    ids = ByteTokenizer().encode(text)
    lines = render_tokens(ByteTokenizer(), ids, 20).plain.split("\n")
    assert all(len(line) <= 20 for line in lines)
    assert lines[0].split() == ["a", "b", "↵"]
    assert [int(i) for line in lines[1::2] for i in line.split()] == ids


def test_wide_signs_have_room_for_their_width() -> None:
    above, below = render_tokens(CharTokenizer("问b"), [1, 0], 80).plain.split("\n")
    assert above == "问 b "
    assert below.rstrip() == "1  0"


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert decode_token_bytes(b"\xf0") == "\\xf0"
    above = render_tokens(CharTokenizer(" \t\x1b"), [2, 1, 0], 80).plain.split("\n")[0]
    assert above.split() == ["·", "\\u001b", "→"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (3723, "1:02:03 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 s"),
        (1.5e-6, "1.5 µs"),
        (0.0234, "23.4 ms"),
        (1, "1 s"),
        (12_345, "12.3 ks"),
        (999_600, "1 Ms"),
    ],
)
def test_numbers_have_a_unit_of_their_size(value: float, words: str) -> None:
    assert scaled(value, "s") == words
