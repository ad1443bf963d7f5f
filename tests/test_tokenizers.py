"""Round trips over texts that nobody would think of; byte pairs against both libraries for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nanogpt import tokenizers
from nanogpt.errors import UserError
from nanogpt.tokenizers import (
    GPT2_PATTERN,
    ByteTokenizer,
    CharTokenizer,
    HubTokenizer,
    Tokenizer,
    from_file,
    from_json,
    make,
    train_bpe,
)

LANGUAGES = [
    "To be, or not to be: that's the question.\n\n  We'll see 1,234 things.",
    "生存还是毁灭,这是一个问题。\r\n",
    "होना या न होना, यही सवाल है।",
    "أكون أو لا أكون، ذلك هو السؤال",
    "\ufeff👩‍👩‍👧 and 🏴‍☠️ \x00\t e\u0301 no newline at the end",
]
# Words that come again, and spaces of all kinds between them, so that there is something to merge.
parts = st.lists(
    st.sampled_from(
        ["the", " the", " then", "'s", "\n", " ", "  ", "\t", "\r\n", "é", "问题", "1", "22"]
    )
    | st.text(max_size=4)
)
texts = parts.map("".join)


@pytest.fixture(scope="module")
def bpe() -> HubTokenizer:
    """A small one, of five languages."""
    return train_bpe(LANGUAGES * 3, 400)


@pytest.fixture(scope="module")
def word_piece() -> HubTokenizer:
    """One whose ids do not stand for bytes of their own."""
    vocabulary = {"[UNK]": 0, "to": 1, "be": 2, "##ing": 3, "or": 4}
    one = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    one.normalizer = normalizers.Lowercase()
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    one.decoder = decoders.WordPiece()
    return HubTokenizer(json.loads(one.to_str()))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(i) for i in ids]) + stream.end()


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


@given(texts | st.text() | st.sampled_from(LANGUAGES))
def test_byte_pairs_are_those_of_both_libraries(bpe: HubTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    hub = library.Tokenizer.from_str(json.dumps(bpe.to_json()))
    assert ids == hub.encode(text).ids
    ranks = {bpe.piece(i): i for i in range(bpe.vocab_size)}
    fast = tiktoken.Encoding("x", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert ids == fast.encode_ordinary(text)
    assert bpe.encode_batch([text, "the"], 2) == [ids, bpe.encode("the")]


@given(texts)
def test_a_cut_before_a_space_changes_nothing(bpe: HubTokenizer, text: str) -> None:
    assert bpe.cuts_at_spaces
    whole = bpe.encode(text)
    for i in range(1, len(text)):
        if text[i].isspace() and not text[i - 1].isspace():
            assert bpe.encode(text[:i]) + bpe.encode(text[i:]) == whole


def test_byte_pairs_merge_what_comes_most() -> None:
    """By hand: of "ab ab ab cab", ab first, then a space before it."""
    tokenizer = train_bpe(["ab ab ab cab"], 258)
    assert [tokenizer.piece(i) for i in (256, 257)] == [b"ab", b" ab"]
    assert [tokenizer.piece(i) for i in tokenizer.encode("ab abb")] == [b"ab", b" ab", b"b"]


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


def test_others_of_the_library_are_read_too(word_piece: HubTokenizer, tmp_path: Path) -> None:
    assert word_piece.encode("To being or") == [1, 2, 3, 4]
    assert not word_piece.cuts_at_spaces
    assert word_piece.encode_batch(["to", "be"], 2) == [[1], [2]]
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
    assert not other.cuts_at_spaces
    for text in LANGUAGES:
        assert other.encode(text) == hub.encode(text).ids


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


def test_a_text_without_pairs_gives_bytes() -> None:
    with pytest.raises(UserError, match="or take --tokenizer byte"):
        train_bpe([""], 300)


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


@settings(max_examples=20)
@given(st.lists(st.integers(0, 255)))
def test_whatever_a_model_writes_can_be_shown(bpe: HubTokenizer, ids: list[int]) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(ids) == streamed(tokenizer, ids)


def test_what_is_a_kind_and_what_a_path() -> None:
    kinds = ("char", "bpe", "bpe:9999", "byte", "x")
    assert [kind for kind in kinds if tokenizers.learns(kind)] == ["char", "bpe", "bpe:9999"]
    assert [kind for kind in kinds if not tokenizers.is_kind(kind)] == ["x"]
