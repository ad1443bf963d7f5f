"""Round trips of any text, the kinds of tokenizers, and invalid tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.text import tokenizers
from nanogpt.text.bpe import HubTokenizer
from nanogpt.text.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    make_tokenizer,
    parse_tokenizer,
    read_tokenizer,
)
from tests.texts import LANGUAGES, stream_decode, texts


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    """Check that decoding reverses encoding, and that a saved tokenizer gives the same ids."""
    loaded = parse_tokenizer(json.loads(json.dumps(tokenizer.to_json())))
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text == stream_decode(tokenizer, ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert loaded.encode(text) == ids
    assert loaded.vocab_size == tokenizer.vocab_size


@given(st.text(min_size=1))
def test_round_trip_of_characters_and_bytes(text: str) -> None:
    check_round_trip(CharTokenizer(text), text)
    check_round_trip(ByteTokenizer(), text)


@given(texts | st.sampled_from(LANGUAGES))
def test_round_trip_of_byte_pairs(bpe: HubTokenizer, text: str) -> None:
    check_round_trip(bpe, text)


def test_character_ids_are_in_the_order_of_code_points() -> None:
    assert CharTokenizer("cab!").encode("!abc") == [0, 1, 2, 3]


def test_the_error_lists_unknown_characters_and_the_alphabet() -> None:
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\); its 3 characters are 'abc'"):
        CharTokenizer("abc").encode("abécab")
    with pytest.raises(
        UserError, match=r"'1' \(U\+0031\), '2' .*, '5' \(U\+0035\) and 2 more; its"
    ):
        CharTokenizer("abc").encode("7654321")


def test_an_unpaired_surrogate_is_refused(bpe: HubTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe, CharTokenizer("a")):
        with pytest.raises(UserError, match=r"U\+D800"):
            tokenizer.encode("a\ud800")


def test_make_tokenizer_makes_every_kind(tmp_path: Path, text: str) -> None:
    assert make_tokenizer("char", ["ab", "ca"], []).vocab_size == 3
    assert make_tokenizer("byte", [], []).vocab_size == 256
    assert make_tokenizer("bpe:300", [text], [text]).vocab_size == 300
    trained = make_tokenizer("bpe:300", [text + "zz" * 999], [text])
    # The tokenizer is trained only on the third argument, the training text.
    assert trained.to_json() == make_tokenizer("bpe:300", [text], [text]).to_json()
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(trained.to_json()))
    assert make_tokenizer(str(file), [], []).encode(text) == trained.encode(text)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nope.json", "there is no tokenizer nope.json: use char, byte, gpt2, bpe, bpe:N, the p"),
        ("bpe:", "tokenizer is bpe:: give the vocabulary size as a number of at most 7 digits"),
        ("bpe:-5", "tokenizer is bpe:-5: give the vocabulary size as a number"),
        ("bpe:10000000", "give the vocabulary size as a number of at most 7 digits, as in bpe:"),
        (
            "bpe:256",
            "tokenizer is bpe:256: the first 256 tokens are the bytes, so use bpe:257 or larger",
        ),
        ("bpe:5000", r"enough pairs for \d+ tokens, not for 5000: use more text, or the tok"),
        (".", "directory"),
    ],
)
def test_an_invalid_kind_is_refused(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tokenizer(kind, ["ab ab cab"], ["ab ab cab"])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "the key 'kind' is missing"),
        ({"kind": "bpe", "alphabet": "ab"}, "kind cannot be 'bpe'"),
        ({"kind": "char"}, "the key 'alphabet' is missing"),
        ({"kind": "char", "alphabet": "ab", "size": 2}, "unknown key 'size'"),
        ({"kind": "char", "alphabet": 3}, "alphabet cannot be 3"),
        ({"kind": "char", "alphabet": ""}, "each character once, sorted"),
        ({"kind": "char", "alphabet": "ba"}, "each character once, sorted"),
        ({"kind": "char", "alphabet": "aab"}, "each character once, sorted"),
        ({"kind": "byte", "size": 2}, "unknown key 'size'"),
        ({"model": 3}, "."),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "its vocabulary is empty"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "."),
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 9**9}, "unk_token": "a"}},
            "its largest id is",
        ),
    ],
)
def test_parse_tokenizer_refuses_invalid_json(saved: dict[str, Any], message: str) -> None:
    if "model" in saved:
        saved = {"version": "1.0", "added_tokens": [], **saved}
    with pytest.raises(ValueError, match=message):
        parse_tokenizer(saved)


def test_a_file_that_is_not_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, message in (("{", "damaged"), ('{"kind": "char"}', "is not a tokenizer")):
        file = tmp_path / "tokenizer.json"
        file.write_text(content)
        with pytest.raises(UserError, match=message) as error:
            read_tokenizer(file)
        assert "\n" not in str(error.value)


def test_kinds_are_distinguished_from_paths() -> None:
    kinds = ("char", "bpe", "bpe:9999", "byte", "gpt2", "x")
    assert [kind for kind in kinds if tokenizers.is_trained_on_text(kind)] == [
        "char",
        "bpe",
        "bpe:9999",
    ]
    assert [kind for kind in kinds if not tokenizers.is_tokenizer_kind(kind)] == ["x"]
