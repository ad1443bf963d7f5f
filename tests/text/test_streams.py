"""Whole characters, however their bytes come."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.text.bpe import HubTokenizer
from nanogpt.text.tokenizers import ByteTokenizer, Tokenizer
from tests.texts import streamed


def test_a_stream_never_shows_half_a_character(bpe: HubTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        stream, shown = tokenizer.stream(), []
        for byte in "a😀é".encode():
            shown.append(stream.push(_byte(tokenizer, byte)))
        assert shown == ["a", "", "", "", "😀", "", "é"]
        stream.push(_byte(tokenizer, 0xF0))
        assert stream.end() == "\ufffd"
        assert tokenizer.decode([_byte(tokenizer, 0xF0)]) == "\ufffd"


def _byte(tokenizer: Tokenizer, byte: int) -> int:
    return next(i for i in range(256) if tokenizer.piece(i) == bytes([byte]))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 255)))
def test_whatever_a_model_writes_can_be_shown(bpe: HubTokenizer, ids: list[int]) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(ids) == streamed(tokenizer, ids)
