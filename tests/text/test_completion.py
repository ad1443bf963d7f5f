"""Text out of tokens: whole characters, stop strings, many prompts at once; the Python API."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.api import Completions, GenerationConfig
from nanogpt.errors import UserError
from nanogpt.models import Bigram, BigramConfig
from nanogpt.text.bpe import train_bpe
from nanogpt.text.completion import (
    Completion,
    CompletionDecoder,
    _overlap,
    encode_prompt,
)
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer


def parrot(text: str, tokenizer: Tokenizer) -> Bigram:
    """A model that writes the characters of a text, each different, in a circle."""
    ids = tokenizer.encode(text)
    model = Bigram(BigramConfig(tokenizer.vocab_size))
    with torch.no_grad():
        for here, there in zip(ids, ids[1:] + ids[:1], strict=True):
            model.table.weight[here, there] = 100.0
    return model


def complete(text: str, prompts: list[str], logprobs: bool = False, **options: Any) -> Completions:
    tokenizer, config = CharTokenizer(text), GenerationConfig(**options)
    return Completions(parrot(text, tokenizer), tokenizer, prompts, config, logprobs)


def test_prompts_and_samples_come_in_order() -> None:
    texts = complete("abcdef", ["a", "de"], samples=2, max_new_tokens=3).finish()
    assert [(t.prompt, t.text) for t in texts] == [("a", "bcd")] * 2 + [("de", "fab")] * 2


def test_what_grows_adds_up_to_the_text() -> None:
    completions = complete("abcdef", ["a", "c"], max_new_tokens=9, stop=("fa",))
    grown = ["", ""]
    for i, piece in completions:
        grown[i] += piece
    assert grown == [text.text for text in completions.texts] == ["bcde", "de"]
    assert all(text.stopped for text in completions.texts)
    assert completions.texts[1].tokens == [3, 4, 5, 0]  # with the stop string


def test_writing_ends_with_the_last_stop() -> None:
    completions = complete("abcdef", ["a", "c"], max_new_tokens=10**9, stop=("f",))
    assert [text.text for text in completions.finish()] == ["bcde", "de"]


def test_what_may_be_a_stop_string_is_held_back_and_not_lost() -> None:
    completions = complete("abcdefX", ["a"], max_new_tokens=4, stop=("eX",))
    assert [piece for _, piece in completions] == ["b", "c", "d", "e"]
    assert completions.texts[0].text == "bcde"
    assert not completions.texts[0].stopped


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    """Against str.find over the whole text, each end of a stop string tried in turn."""
    tokenizer = ByteTokenizer()
    growing = CompletionDecoder(Completion(""), tokenizer, stop)
    shown = ""
    for token in tokenizer.encode(text):
        shown += growing.push(token)
        if growing.text.stopped:
            break
    else:
        shown += growing.end()
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    if ends:
        longest = max(len(s) for s in stop if text[: ends[0]].endswith(s))
        text = text[: ends[0] - longest]
    assert shown == growing.text.text == text
    assert growing.text.stopped == bool(ends)


def test_of_two_stop_strings_in_one_token_the_first_counts() -> None:
    for stop in (("b", "d"), ("d", "b")):
        growing = CompletionDecoder(Completion(""), train_bpe(["abcde abcde"], 260), stop)
        tokens = train_bpe(["abcde abcde"], 260).encode("abcde")
        assert len(tokens) == 1
        assert growing.push(tokens[0]) == growing.text.text == "a"


def test_overlap() -> None:
    assert [_overlap(t, "aab") for t in ("", "a", "aa", "ba", "aab", "b")] == [0, 1, 2, 1, 0, 0]


def test_half_characters_wait_for_their_other_half() -> None:
    tokenizer = ByteTokenizer()
    text = "a😀"
    completions = Completions(
        parrot(text, tokenizer), tokenizer, ["a"], GenerationConfig(max_new_tokens=4)
    )
    assert [piece for _, piece in completions] == ["😀"]
    completions = Completions(
        parrot(text, tokenizer), tokenizer, ["a"], GenerationConfig(max_new_tokens=3)
    )
    assert [piece for _, piece in completions] == ["\ufffd"]


def test_an_empty_prompt_is_the_start_of_a_line() -> None:
    assert encode_prompt(CharTokenizer("ab\n"), "") == [0]
    assert encode_prompt(CharTokenizer("ba"), "") == [0]
    assert encode_prompt(ByteTokenizer(), "") == [10]
    assert complete("a\nbc", [""], max_new_tokens=3).finish()[0].text == "bca"


def test_logprobs_only_when_asked() -> None:
    with_them = complete("abc", ["a"], max_new_tokens=4, logprobs=True).finish()[0]
    assert len(with_them.logprobs) == len(with_them.tokens) == 4
    assert all(logprob == pytest.approx(0, abs=1e-5) for logprob in with_them.logprobs)
    assert complete("abc", ["a"], max_new_tokens=4).finish()[0].logprobs == []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be at least 1"),
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"stop": ("",)}, "stop has an empty string: leave it out"),
        ({"stop": ("a!",)}, r"the stop string 'a!' can never come: the tokenizer does not know"),
    ],
)
def test_what_cannot_be_written_is_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        complete("abc", ["a"], **how)
