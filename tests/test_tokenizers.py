"""Round trips, over texts that nobody would think of."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.tokenizers import CharTokenizer


@given(st.text())
def test_decode_undoes_encode(text: str) -> None:
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(st.text(min_size=1))
def test_it_survives_json(text: str) -> None:
    tokenizer = CharTokenizer(text)
    again = CharTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.encode(text) == tokenizer.encode(text)
    assert again.vocab_size == tokenizer.vocab_size


def test_ids_follow_the_code_points() -> None:
    assert CharTokenizer("cab!").encode("!abc") == [0, 1, 2, 3]


def test_an_unknown_character_is_named_with_the_alphabet() -> None:
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\); its 3 characters are 'abc'"):
        CharTokenizer("abc").encode("abécab")


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
    ],
)
def test_what_is_no_tokenizer_is_refused(saved: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CharTokenizer.from_json(saved)
