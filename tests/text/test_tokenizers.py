"""Round trips over texts that nobody would think of, and what is no tokenizer."""

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
    from_file,
    from_json,
    make,
)
from tests.texts import LANGUAGES, streamed, texts


def round_trip(tokenizer: Tokenizer, text: str) -> None:
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text == streamed(tokenizer, ids)
    assert b"".join(map(tokenizer.piece, ids)) == text.encode()
    assert again.encode(text) == ids
    assert again.vocab_size == tokenizer.vocab_size


@given(st.text(min_size=1))
def test_characters_and_bytes_there_and_back(text: str) -> None:
    round_trip(CharTokenizer(text), text)
    round_trip(ByteTokenizer(), text)


@given(texts | st.sampled_from(LANGUAGES))
def test_byte_pairs_there_and_back(bpe: HubTokenizer, text: str) -> None:
    round_trip(bpe, text)


def test_ids_follow_the_code_points() -> None:
    assert CharTokenizer("cab!").encode("!abc") == [0, 1, 2, 3]


def test_unknown_characters_are_named_with_the_alphabet() -> None:
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\); its 3 characters are 'abc'"):
        CharTokenizer("abc").encode("abécab")
    with pytest.raises(
        UserError, match=r"'1' \(U\+0031\), '2' .*, '5' \(U\+0035\) and 2 more; its"
    ):
        CharTokenizer("abc").encode("7654321")


def test_half_a_surrogate_pair_is_no_character(bpe: HubTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe, CharTokenizer("a")):
        with pytest.raises(UserError, match=r"U\+D800"):
            tokenizer.encode("a\ud800")


def test_every_kind_is_made_from_its_name(tmp_path: Path, text: str) -> None:
    assert make("char", ["ab", "ca"], []).vocab_size == 3
    assert make("byte", [], []).vocab_size == 256
    assert make("bpe:300", [text], [text]).vocab_size == 300
    learned = make("bpe:300", [text + "zz" * 999], [text])
    assert learned.to_json() == make("bpe:300", [text], [text]).to_json()  # not from the rest
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(learned.to_json()))
    assert make(str(file), [], []).encode(text) == learned.encode(text)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nope.json", "there is no tokenizer nope.json: take char, byte, bpe, bpe:N, or the path"),
        ("bpe:", "tokenizer is bpe:: after bpe: comes how many tokens, as in bpe:2048"),
        ("bpe:-5", "tokenizer is bpe:-5: after bpe: comes how many tokens"),
        ("bpe:256", "tokenizer is bpe:256: 256 tokens are the bytes, so ask for 257 or more"),
        ("bpe:5000", r"pairs enough for \d+ tokens, not for 5000: give more text, or take --to"),
        (".", "directory"),
    ],
)
def test_what_is_no_kind_is_refused(kind: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(kind, ["ab ab cab"], ["ab ab cab"])


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({}, "the key 'kind' is missing"),
        ({"kind": "bpe", "alphabet": "ab"}, "kind cannot be 'bpe'"),
        ({"kind": "char"}, "the key 'alphabet' is missing"),
        ({"kind": "char", "alphabet": "ab", "size": 2}, "unknown key 'size'"),
        ({"kind": "char", "alphabet": 3}, "alphabet cannot be 3"),
        ({"kind": "char", "alphabet": ""}, "every character once, in order"),
        ({"kind": "char", "alphabet": "ba"}, "every character once, in order"),
        ({"kind": "char", "alphabet": "aab"}, "every character once, in order"),
        ({"kind": "byte", "size": 2}, "unknown key 'size'"),
        ({"model": 3}, "."),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "its vocabulary is empty"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "."),
        ({"model": {"type": "WordLevel", "vocab": {"a": 9**9}, "unk_token": "a"}}, "its ids go up"),
    ],
)
def test_what_is_no_tokenizer_is_refused(saved: dict[str, Any], says: str) -> None:
    if "model" in saved:
        saved = {"version": "1.0", "added_tokens": [], **saved}
    with pytest.raises(ValueError, match=says):
        from_json(saved)


def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    for content, says in (("{", "damaged"), ('{"kind": "char"}', "is no tokenizer")):
        file = tmp_path / "tokenizer.json"
        file.write_text(content)
        with pytest.raises(UserError, match=says) as error:
            from_file(file)
        assert "\n" not in str(error.value)


def test_what_is_a_kind_and_what_a_path() -> None:
    kinds = ("char", "bpe", "bpe:9999", "byte", "x")
    assert [kind for kind in kinds if tokenizers.learns(kind)] == ["char", "bpe", "bpe:9999"]
    assert [kind for kind in kinds if not tokenizers.is_kind(kind)] == ["x"]
