"""Completions: stop strings, complete characters, and several prompts at once."""

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
    _count_stop_prefix,
    encode_prompt,
)
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer


def make_cyclic_model(text: str, tokenizer: Tokenizer) -> Bigram:
    """Return a model that repeats the tokens of `text` forever; all tokens must be different."""
    ids = tokenizer.encode(text)
    model = Bigram(BigramConfig(tokenizer.vocab_size))
    with torch.no_grad():
        for token, next_token in zip(ids, ids[1:] + ids[:1], strict=True):
            model.table.weight[token, next_token] = 100.0
    return model


def complete(text: str, prompts: list[str], logprobs: bool = False, **options: Any) -> Completions:
    """Return the completions of a model that repeats the characters of `text` forever."""
    tokenizer, config = CharTokenizer(text), GenerationConfig(**options)
    return Completions(make_cyclic_model(text, tokenizer), tokenizer, prompts, config, logprobs)


def test_completions_are_in_the_order_of_prompts_and_samples() -> None:
    texts = complete("abcdef", ["a", "de"], samples=2, max_new_tokens=3).finish()
    assert [(t.prompt, t.text) for t in texts] == [("a", "bcd")] * 2 + [("de", "fab")] * 2


def test_the_yielded_strings_add_up_to_each_completion() -> None:
    completions = complete("abcdef", ["a", "c"], max_new_tokens=9, stop=("fa",))
    grown = ["", ""]
    for i, new_text in completions:
        grown[i] += new_text
    assert grown == [text.text for text in completions.texts] == ["bcde", "de"]
    assert all(text.stopped for text in completions.texts)
    assert completions.texts[1].tokens == [3, 4, 5, 0]  # they include the stop string


def test_generation_ends_when_every_completion_has_stopped() -> None:
    completions = complete("abcdef", ["a", "c"], max_new_tokens=10**9, stop=("f",))
    assert [text.text for text in completions.finish()] == ["bcde", "de"]


def test_text_held_back_for_a_stop_string_is_not_lost() -> None:
    completions = complete("abcdefX", ["a"], max_new_tokens=4, stop=("eX",))
    assert [new_text for _, new_text in completions] == ["b", "c", "d", "e"]
    assert completions.texts[0].text == "bcde"
    assert not completions.texts[0].stopped


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_completion_ends_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    """The expected text stands before the longest of the stop strings that end first."""
    tokenizer = ByteTokenizer()
    decoder = CompletionDecoder(Completion(""), tokenizer, stop)
    output = ""
    for token in tokenizer.encode(text):
        output += decoder.push(token)
        if decoder.completion.stopped:
            break
    else:
        output += decoder.end()
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    if ends:
        longest = max(len(s) for s in stop if text[: ends[0]].endswith(s))
        text = text[: ends[0] - longest]
    assert output == decoder.completion.text == text
    assert decoder.completion.stopped == bool(ends)


def test_the_first_of_two_stop_strings_in_one_token_counts() -> None:
    for stop in (("b", "d"), ("d", "b")):
        tokenizer = train_bpe(["abcde abcde"], 260)
        decoder = CompletionDecoder(Completion(""), tokenizer, stop)
        tokens = tokenizer.encode("abcde")
        assert len(tokens) == 1
        assert decoder.push(tokens[0]) == decoder.completion.text == "a"


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), ("a", 1), ("aa", 2), ("ba", 1), ("aab", 0), ("b", 0)]
)
def test_the_beginning_of_a_stop_string_at_the_end_is_found(text: str, length: int) -> None:
    assert _count_stop_prefix(text, "aab") == length


def test_an_incomplete_character_is_held_back() -> None:
    tokenizer = ByteTokenizer()
    text = "a😀"
    completions = Completions(
        make_cyclic_model(text, tokenizer), tokenizer, ["a"], GenerationConfig(max_new_tokens=4)
    )
    assert [new_text for _, new_text in completions] == ["😀"]
    completions = Completions(
        make_cyclic_model(text, tokenizer), tokenizer, ["a"], GenerationConfig(max_new_tokens=3)
    )
    assert [new_text for _, new_text in completions] == ["\ufffd"]


def test_an_empty_prompt_becomes_a_line_break_or_token_zero() -> None:
    assert encode_prompt(CharTokenizer("ab\n"), "") == [0]
    assert encode_prompt(CharTokenizer("ba"), "") == [0]
    assert encode_prompt(ByteTokenizer(), "") == [10]
    assert complete("a\nbc", [""], max_new_tokens=3).finish()[0].text == "bca"


def test_logprobs_are_returned_only_on_request() -> None:
    completion = complete("abc", ["a"], max_new_tokens=4, logprobs=True).finish()[0]
    assert len(completion.logprobs) == len(completion.tokens) == 4
    assert all(logprob == pytest.approx(0, abs=1e-5) for logprob in completion.logprobs)
    assert complete("abc", ["a"], max_new_tokens=4).finish()[0].logprobs == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be at least 1"),
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"stop": ("",)}, "stop has an empty string: leave this string out"),
        ({"stop": ("a!",)}, r"the stop string 'a!' can never occur: the tokenizer does not know"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        complete("abc", ["a"], **options)
