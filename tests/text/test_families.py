"""A tokenizer.json of each family encodes, decodes and streams like the library `tokenizers`."""

import json
from collections.abc import Callable
from functools import cache

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from nanogpt.errors import UserError
from nanogpt.text.bpe import HubTokenizer
from tests.families import (
    FAMILIES,
    byte_level,
    end_of_word,
    llama,
    word_level,
    word_piece,
)
from tests.texts import stream_decode

TEXT = "To be, or not to be. <s>to</s> the the then! é 😀"
Make = Callable[[], library.Tokenizer]


@cache
def make_tokenizer(make: Make) -> HubTokenizer:
    """Make a tokenizer of this project from a tokenizer of the library `tokenizers`."""
    return HubTokenizer(json.loads(make().to_str()))


@cache
def make_hub(make: Make) -> library.Tokenizer:
    """Return a tokenizer of the library `tokenizers`; later calls return the same object."""
    return make()


for_each_family = pytest.mark.parametrize("make", FAMILIES)


@for_each_family
@given(data=st.data())
def test_streamed_pieces_are_the_decoded_text(make: Make, data: st.DataObject) -> None:
    tokenizer = make_tokenizer(make)
    last = tokenizer.vocab_size - 1  # in most families, the last ids are words
    words = st.integers(max(0, last - 10), last)
    ids = data.draw(st.lists(words | st.integers(0, last), max_size=40))
    assert stream_decode(tokenizer, ids) == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == make_hub(make).decode(ids, skip_special_tokens=False)
    stream = tokenizer.decode_stream()
    assert stream.push(*ids) + stream.end() == tokenizer.decode(ids)


@for_each_family
@given(data=st.data())
def test_a_completion_continues_the_text_of_its_prompt(make: Make, data: st.DataObject) -> None:
    """Some decoders drop the first space of a text, but must not drop the space after a prompt."""
    tokenizer = make_tokenizer(make)
    prompt = tokenizer.encode(data.draw(st.sampled_from(["to be", "or", "to be ", "the then"])))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = tokenizer.decode_stream(prompt)
    text = "".join([stream.push(i) for i in ids]) + stream.end()
    # The library decodes successive byte tokens together. If the prompt ends with a byte token and
    # the completion begins with one, the text of the prompt can change.
    hub = make_hub(make)
    known = [token for i in ids if (token := hub.id_to_token(i))]
    between = [*(str(hub.id_to_token(i)) for i in prompt[-1:]), *known[:1]]
    if not all(token.startswith("<0x") for token in between):
        assert tokenizer.decode(prompt + ids) == tokenizer.decode(prompt) + text


@for_each_family
def test_the_ids_are_those_of_the_library(make: Make) -> None:
    tokenizer = make_tokenizer(make)
    assert tokenizer.encode(TEXT) == make().encode(TEXT, add_special_tokens=False).ids


def test_a_stream_returns_the_text_token_by_token() -> None:
    tokenizer = make_tokenizer(llama)
    stream = tokenizer.decode_stream()
    ids = tokenizer.encode("to be é to")
    pieces = [stream.push(i) for i in ids]
    assert pieces == ["to", " be", " ", "", "", "é to"]


def test_invalid_bytes_become_replacement_characters() -> None:
    tokenizer = make_tokenizer(llama)
    bytes_of_é = [tokenizer.encode("é")[i] for i in (-2, -1)]
    ids = [*bytes_of_é, bytes_of_é[0], *tokenizer.encode("to")]
    assert stream_decode(tokenizer, ids) == tokenizer.decode(ids) == "\ufffd\ufffd\ufffd to"
    assert stream_decode(tokenizer, ids[:1]) == "\ufffd"


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"to": 0}, unk_token="[UNK]"),
        models.Unigram([("to", -1.0), ("o", -2.0), ("t", -2.0)], None, False),
        models.WordPiece({"to": 0}, unk_token="[UNK]"),
    ],
)
def test_text_that_a_tokenizer_does_not_know_is_refused(model: models.Model) -> None:
    hub = library.Tokenizer(model)
    hub.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = HubTokenizer(json.loads(hub.to_str()))
    assert tokenizer.encode("to to") == [0, 0]
    with pytest.raises(UserError, match=r"the tokenizer cannot encode the text: .*(unk|UNK)"):
        tokenizer.encode("to be")


def test_bytes_of_lost_characters_are_counted() -> None:
    def lost(make: Make, text: str) -> int:
        tokenizer = make_tokenizer(make)
        return tokenizer.count_lost_bytes(text, tokenizer.encode_array(text))

    assert lost(byte_level, TEXT) == lost(llama, "to be 😀é\n") == 0
    assert lost(word_level, "to be") == 0
    assert lost(word_level, "to be é 😀 x") == len("é😀x".encode())
    assert lost(word_piece, "To be\nor") == len("T\n")
    assert lost(end_of_word, "to be 😀") == len("😀".encode())
