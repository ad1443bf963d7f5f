"""Byte pairs against both libraries for them, over texts of many languages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nanogpt.errors import UserError
from nanogpt.text.bpe import AT_LINES, AT_SPACES, GPT2_PATTERN, HubTokenizer, train_bpe
from nanogpt.text.tokenizers import from_file
from tests.texts import LANGUAGES, streamed, texts


@pytest.fixture(scope="module")
def word_piece() -> HubTokenizer:
    """One whose ids do not stand for bytes of their own."""
    vocabulary = {"[UNK]": 0, "to": 1, "be": 2, "##ing": 3, "or": 4}
    one = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    one.normalizer = normalizers.Lowercase()
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    one.decoder = decoders.WordPiece()
    return HubTokenizer(json.loads(one.to_str()))


@given(texts | st.text() | st.sampled_from(LANGUAGES))
def test_byte_pairs_are_those_of_both_libraries(bpe: HubTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    hub = library.Tokenizer.from_str(json.dumps(bpe.to_json()))
    assert ids == hub.encode(text).ids
    ranks = {bpe.piece(i): i for i in range(bpe.vocab_size)}
    fast = tiktoken.Encoding("x", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert ids == fast.encode_ordinary(text)
    assert bpe.encode_array(text).tolist() == ids


@given(texts)
def test_a_cut_before_a_space_changes_nothing(bpe: HubTokenizer, text: str) -> None:
    whole = bpe.encode(text)
    for found in re.finditer(bpe.boundary, text):
        if i := found.start():
            assert bpe.encode(text[:i]) + bpe.encode(text[i:]) == whole


def test_byte_pairs_merge_what_comes_most() -> None:
    """By hand: of "ab ab ab cab", ab first, then a space before it."""
    tokenizer = train_bpe(["ab ab ab cab"], 258)
    assert [tokenizer.piece(i) for i in (256, 257)] == [b"ab", b" ab"]
    assert [tokenizer.piece(i) for i in tokenizer.encode("ab abb")] == [b"ab", b" ab", b"b"]


def test_others_of_the_library_are_read_too(word_piece: HubTokenizer, tmp_path: Path) -> None:
    assert word_piece.encode("To being or") == [1, 2, 3, 4]
    assert word_piece.boundary == AT_LINES
    assert word_piece.encode_array("to be").tolist() == [1, 2]
    assert streamed(word_piece, [1, 2, 3, 4]) == word_piece.decode([1, 2, 3, 4]) == "to being or"
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_piece.to_json()))
    assert from_file(tmp_path / "tokenizer.json").encode("be") == [2]


def test_what_the_file_says_of_length_and_padding_is_left_out() -> None:
    """A tokenizer.json may cut texts to 512 tokens, and add marks: that is for its own model."""
    one = library.Tokenizer.from_str(json.dumps(train_bpe(["ab ab"], 257).to_json()))
    one.add_special_tokens(["<end>"])
    one.enable_truncation(3)
    one.enable_padding(length=8, pad_token="<end>", pad_id=257)
    read = HubTokenizer(json.loads(one.to_str()))
    assert len(read.encode("abc" * 9)) == 18
    # What marks the end of a document is read where a text has it, and written the same.
    assert read.encode("ab<end>") == [256, 257] == one.encode("ab<end>").ids[:2]
    assert read.decode([256, 257]) == "ab<end>" == streamed(read, [256, 257])


def test_a_length_in_the_file_cuts_no_text(word_piece: HubTokenizer) -> None:
    """The same where the library itself encodes."""
    one = library.Tokenizer.from_str(json.dumps(word_piece.to_json()))
    one.enable_truncation(2)
    one.enable_padding(length=8)
    assert HubTokenizer(json.loads(one.to_str())).encode("to be to be to") == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
    ],
)
def test_byte_pairs_that_are_not_gpt2_s_are_those_of_the_library(
    bpe: HubTokenizer, change: dict[str, Any]
) -> None:
    saved = bpe.to_json() | change
    other, hub = HubTokenizer(saved), library.Tokenizer.from_str(json.dumps(saved))
    assert other.boundary == AT_LINES
    for text in LANGUAGES:
        assert other.encode(text) == hub.encode(text).ids


def test_a_text_without_pairs_gives_bytes() -> None:
    with pytest.raises(UserError, match="or take --tokenizer byte"):
        train_bpe([""], 300)


def test_a_special_token_with_a_space_is_not_cut(bpe: HubTokenizer) -> None:
    """But at the start of a line, which no one is known to have within."""
    saved = bpe.to_json()
    added = {"id": bpe.vocab_size, "content": "<|a b|>", "special": True, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    with_space = HubTokenizer(saved | {"added_tokens": [added]})
    assert bpe.boundary == AT_SPACES
    assert with_space.boundary == AT_LINES
    assert with_space.encode("<|a b|>") == [bpe.vocab_size]


def test_more_spaces_than_tiktoken_can_take(bpe: HubTokenizer) -> None:
    text = "a" + " " * 1_100_000 + "b"
    assert bpe.decode(bpe.encode(text)) == text
