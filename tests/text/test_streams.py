"""Decode streams return complete characters only."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.text.bpe import HubTokenizer
from nanogpt.text.tokenizers import ByteTokenizer, Tokenizer
from tests.texts import stream_decode


def test_a_stream_never_returns_part_of_a_character(bpe: HubTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        stream, output = tokenizer.decode_stream(), []
        for byte in "a😀é".encode():
            output.append(stream.push(find_token(tokenizer, byte)))
        assert output == ["a", "", "", "", "😀", "", "é"]
        stream.push(find_token(tokenizer, 0xF0))
        assert stream.end() == "\ufffd"
        assert tokenizer.decode([find_token(tokenizer, 0xF0)]) == "\ufffd"


def find_token(tokenizer: Tokenizer, byte: int) -> int:
    """Find the token of a single byte."""
    return next(i for i in range(256) if tokenizer.token_bytes(i) == bytes([byte]))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 255)))
def test_any_sequence_of_tokens_can_be_decoded(bpe: HubTokenizer, ids: list[int]) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(ids) == stream_decode(tokenizer, ids)
