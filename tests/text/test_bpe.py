"""Byte-pair encoding gives the same ids as `tokenizers` and `tiktoken`, in many languages."""

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
from nanogpt.text.bpe import (
    GPT2_PATTERN,
    LINE_BOUNDARY,
    SPACE_BOUNDARY,
    HubTokenizer,
    make_bpe,
    train_bpe,
)
from nanogpt.text.tokenizers import read_tokenizer
from tests.texts import LANGUAGES, stream_decode, texts


@pytest.fixture(scope="module")
def word_piece() -> HubTokenizer:
    """A tokenizer whose tokens are not sequences of bytes."""
    vocabulary = {"[UNK]": 0, "to": 1, "be": 2, "##ing": 3, "or": 4}
    hub = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    hub.normalizer = normalizers.Lowercase()
    hub.pre_tokenizer = pre_tokenizers.Whitespace()
    hub.decoder = decoders.WordPiece()
    return HubTokenizer(json.loads(hub.to_str()))


@given(texts | st.text() | st.sampled_from(LANGUAGES))
def test_encode_gives_the_same_ids_as_tokenizers_and_tiktoken(bpe: HubTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    hub = library.Tokenizer.from_str(json.dumps(bpe.to_json()))
    assert ids == hub.encode(text).ids
    ranks = {bpe.token_bytes(i): i for i in range(bpe.vocab_size)}
    encoding = tiktoken.Encoding(
        "x", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    assert ids == encoding.encode_ordinary(text)
    assert bpe.encode_array(text).tolist() == ids


@given(texts)
def test_splitting_at_a_boundary_does_not_change_the_ids(bpe: HubTokenizer, text: str) -> None:
    whole = bpe.encode(text)
    for match in re.finditer(bpe.boundary, text):
        if i := match.start():
            assert bpe.encode(text[:i]) + bpe.encode(text[i:]) == whole


def test_training_merges_the_most_frequent_pair_first() -> None:
    """In "ab ab ab cab", the first merge joins "a" and "b"; the second joins " " and "ab"."""
    tokenizer = train_bpe(["ab ab ab cab"], 258)
    assert [tokenizer.token_bytes(i) for i in (256, 257)] == [b"ab", b" ab"]
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("ab abb")] == [b"ab", b" ab", b"b"]


def test_a_tokenizer_that_is_not_bpe_works(word_piece: HubTokenizer, tmp_path: Path) -> None:
    assert word_piece.encode("To being or") == [1, 2, 3, 4]
    assert word_piece.boundary == LINE_BOUNDARY
    assert word_piece.encode_array("to be").tolist() == [1, 2]
    assert (
        stream_decode(word_piece, [1, 2, 3, 4]) == word_piece.decode([1, 2, 3, 4]) == "to being or"
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_piece.to_json()))
    assert read_tokenizer(tmp_path / "tokenizer.json").encode("be") == [2]


def test_truncation_and_padding_in_a_tokenizer_json_are_ignored() -> None:
    """A tokenizer.json may truncate texts to the context of its model, such as 512 tokens."""
    hub = library.Tokenizer.from_str(json.dumps(train_bpe(["ab ab"], 257).to_json()))
    hub.add_special_tokens(["<end>"])
    hub.enable_truncation(3)
    hub.enable_padding(length=8, pad_token="<end>", pad_id=257)
    tokenizer = HubTokenizer(json.loads(hub.to_str()))
    assert len(tokenizer.encode("abc" * 9)) == 18
    # A special token in a text becomes one token; decoding gives the same text.
    assert tokenizer.encode("ab<end>") == [256, 257] == hub.encode("ab<end>").ids[:2]
    assert tokenizer.decode([256, 257]) == "ab<end>" == stream_decode(tokenizer, [256, 257])


def test_truncation_is_ignored_without_tiktoken(word_piece: HubTokenizer) -> None:
    hub = library.Tokenizer.from_str(json.dumps(word_piece.to_json()))
    hub.enable_truncation(2)
    hub.enable_padding(length=8)
    assert HubTokenizer(json.loads(hub.to_str())).encode("to be to be to") == [1, 2, 1, 2, 1]


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
def test_other_byte_level_tokenizers_encode_with_the_library_tokenizers(
    bpe: HubTokenizer, change: dict[str, Any]
) -> None:
    saved = bpe.to_json() | change
    other, hub = HubTokenizer(saved), library.Tokenizer.from_str(json.dumps(saved))
    assert other.boundary == LINE_BOUNDARY
    for text in LANGUAGES:
        assert other.encode(text) == hub.encode(text).ids


def test_a_text_without_pairs_is_refused() -> None:
    with pytest.raises(UserError, match="use more text, or the tokenizer byte"):
        train_bpe([""], 300)


def test_a_special_token_with_a_space_is_not_split(bpe: HubTokenizer) -> None:
    saved = bpe.to_json()
    special = {"id": bpe.vocab_size, "content": "<|a b|>", "special": True, "normalized": False}
    special |= {"single_word": False, "lstrip": False, "rstrip": False}
    with_space = HubTokenizer(saved | {"added_tokens": [special]})
    assert bpe.boundary == SPACE_BOUNDARY
    assert with_space.boundary == LINE_BOUNDARY
    assert with_space.encode("<|a b|>") == [bpe.vocab_size]


@pytest.mark.slow
def test_a_text_with_too_many_spaces_for_tiktoken_is_encoded(bpe: HubTokenizer) -> None:
    text = "a" + " " * 1_100_000 + "b"
    assert bpe.decode(bpe.encode(text)) == text


def test_a_tokenizer_is_made_from_a_vocabulary_and_merges(bpe: HubTokenizer) -> None:
    model = bpe.to_json()["model"]
    made = make_bpe(model["vocab"], [(a, b) for a, b in model["merges"]])
    for text in LANGUAGES:
        assert made.encode(text) == bpe.encode(text)
        assert made.decode(made.encode(text)) == text
    with pytest.raises(ValueError, match="out of vocabulary"):
        make_bpe({"a": 0}, [("a", "b")])
