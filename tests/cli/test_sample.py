"""The command `nanogpt sample`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt.errors import escape_control
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.text.tokenizers import CharTokenizer

from .answers import Command, assert_refused


def test_the_same_seed_generates_the_same_text(nanogpt: Command, run: Path) -> None:
    def text(*options: object) -> str:
        return nanogpt("sample", run, "--max-new-tokens", 60, *options)[1]

    assert text("--seed", 1) == text("--seed", 1) != text("--seed", 2)
    assert text("--temperature", 0, "--seed", 1) == text("--temperature", 0, "--seed", 2)
    assert text("--top-k", 1, "--seed", 1) == text("--temperature", 0)


def test_the_prompt_is_continued(nanogpt: Command, run: Path) -> None:
    _, out, _ = nanogpt("sample", run, "--prompt", "bad,", "--max-new-tokens", 10)
    assert out.startswith("bad,")
    assert len(out) == 4 + 10 + 1
    Path("prompt.txt").write_text("bad,")
    assert nanogpt("sample", run, "--prompt-file", "prompt.txt", "--max-new-tokens", 10)[1] == out


def test_samples_differ_and_the_first_uses_the_given_seed(nanogpt: Command, run: Path) -> None:
    _, out, _ = nanogpt("sample", run, "--samples", 3, "--max-new-tokens", 40)
    first, *others = re.split(r"--- \d of 3 ---\n", out)[1:]
    assert len(others) == 2
    assert len({first, *others}) == 3
    assert first == nanogpt("sample", run, "--max-new-tokens", 40)[1]


def test_a_run_without_line_breaks_in_its_alphabet_can_be_sampled(nanogpt: Command) -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=2))
    save_checkpoint(Path("runs/ab/best"), Checkpoint(model, CharTokenizer("ab"), 1))
    status, out, _ = nanogpt("sample", "ab", "--max-new-tokens", 20)
    assert status == 0
    assert re.fullmatch("[ab]{20}\n", out)


def test_control_characters_are_escaped_in_a_terminal(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe or a file, control characters are not escaped."""
    assert escape_control("a\tb\n\x1b]0;title\x07é\x9b") == "a\tb\n\\x1b]0;title\\x07é\\x9b"
    flags = ("sample", "ab", "--max-new-tokens", 20)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=1))
    save_checkpoint(Path("runs/ab/best"), Checkpoint(model, CharTokenizer("\x1b"), 1))
    assert nanogpt(*flags)[1] == "\x1b" * 20 + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert nanogpt(*flags)[1] == "\\x1b" * 20 + "\n"


def test_several_prompts_are_continued_at_once(nanogpt: Command, run: Path) -> None:
    prompts = ("--prompt", "bad,", "--prompt", "a", "--samples", 2)
    _, out, err = nanogpt("sample", run, *prompts, "--max-new-tokens", 12)
    parts = re.split(r"--- \d of 4 ---\n", out)[1:]
    assert [len(part) for part in parts] == [17, 17, 14, 14]
    assert [part[:1] for part in parts] == ["b", "b", "a", "a"]
    assert err == ""


def test_json_has_an_object_for_each_completion(nanogpt: Command, run: Path) -> None:
    how = ("--prompt", "bad,", "--max-new-tokens", 12)
    _, out, _ = nanogpt("sample", run, *how, "--samples", 2, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [len(a["text"]) for a in answers] == [12, 12]
    assert [len(a["logprobs"]) for a in answers] == [12, 12]
    assert all(a["prompt"] == "bad," and max(a["logprobs"]) <= 0 for a in answers)
    text, stop, _ = answers[0]["text"].partition(answers[0]["text"][5])
    answer = json.loads(nanogpt("sample", run, *how, "--stop", stop, "--json")[1])
    assert (answer["text"], answer["stopped"]) == (text, True)


def test_notes_about_empty_and_long_prompts(nanogpt: Command, run: Path) -> None:
    _, _, err = nanogpt("sample", run, "--max-new-tokens", 1)
    assert err == "nanogpt: no prompt: the text starts at the beginning of a line\n"
    _, out, err = nanogpt("sample", run, "--prompt", "bad, " * 5, "--max-new-tokens", 1)
    assert err == "nanogpt: the model sees the last 16 of the prompt's 25 tokens\n"
    assert out.startswith("bad, " * 5)


def test_interactive_continues_each_prompt(
    nanogpt: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated prompt gets a different completion; an invalid prompt does not end the command."""
    typed = iter(["bad,", "bad,", "bad ü", "bad,"])

    def answer(_: str) -> str:
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    status, out, err = nanogpt("sample", run, "--interactive", "--max-new-tokens", 10)
    texts = re.findall(r"bad,([^|]{10})\n", out)
    assert status == 0
    assert len(set(texts)) == len(texts) == 3
    assert err.startswith("nanogpt: Ctrl-C stops a completion, Ctrl-D ends the command\n")
    assert "nanogpt: the tokenizer does not know the character 'ü' (U+00FC)" in err
    status, _, err = nanogpt("sample", run, "--interactive", "--prompt", "a")
    assert status == 2
    assert err.startswith("nanogpt: --interactive asks for prompts: leave out --prompt, ")


def test_ctrl_c_stops_the_completion_and_not_the_command(
    nanogpt: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: Iterator[str | BaseException] = iter(["a", KeyboardInterrupt(), "a", EOFError()])
    texts = []

    def answer(_: str) -> str:
        given = next(typed)
        if isinstance(given, str):
            return given
        raise given

    def interrupted(*_: object) -> None:
        texts.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("nanogpt.cli.sample.print_completions", interrupted)
    assert nanogpt("sample", run, "--interactive")[0] == 0
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "bad é"), "the tokenizer does not know the character 'é' (U+00E9); its 12 "),
        (("--temperature", "-1", "--prompt", "bad"), "--temperature is -1.0: it must be 0 or more"),
        (("--prompt-file", "nope"), "cannot read nope: No such file or directory"),
        (("--prompt", "-bad"), "the tokenizer does not know the character '-' (U+002D); its 12 "),
    ],
)
def test_a_mistake_prints_one_line(
    nanogpt: Command, run: Path, options: tuple[str, ...], message: str
) -> None:
    assert_refused(nanogpt("sample", run, *options), message)


def test_stop_can_be_repeated(nanogpt: Command, run: Path) -> None:
    flags = ("sample", run, "--prompt", "a", "--json")
    answer = json.loads(nanogpt(*flags, "--stop", " ", "--stop", "b")[1])
    assert answer["stopped"]
    assert not set(" b") & set(answer["text"])


@pytest.mark.parametrize("samples", [10**9, 2**63 - 1])
def test_more_samples_than_fit_into_memory_are_refused(
    nanogpt: Command, run: Path, samples: int
) -> None:
    answer = nanogpt("sample", run, "--prompt", "bad", "--samples", samples)
    assert_refused(answer, "samples at once needs at least ")


def test_the_largest_number_of_tokens_needs_no_memory_before_they_are_generated(
    nanogpt: Command, run: Path
) -> None:
    status, out, _ = nanogpt("sample", run, "--max-new-tokens", 2**63 - 1, "--stop", "e")
    assert status == 0
    assert "e" not in out
