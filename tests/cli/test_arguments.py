"""Command-line arguments: every mistake leads to an error message of one line."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import docstring_parser
import pytest
import tyro

from nanogpt.api import GenerationConfig
from nanogpt.cli.arguments import _explain_unknown, _list_options
from nanogpt.cli.data import DataArgs
from nanogpt.cli.evaluate import EvalArgs
from nanogpt.cli.explain import ExplainArgs
from nanogpt.cli.inspect import InspectArgs
from nanogpt.cli.lab import LabArgs
from nanogpt.cli.sample import SampleArgs
from nanogpt.cli.study import LadderArgs, ScalingArgs
from nanogpt.cli.tokenize import TokenizeArgs
from nanogpt.cli.train import TrainArgs
from nanogpt.cli.values import positional
from nanogpt.runs.presets import PRESETS

from .answers import Command, assert_refused


def flatten(help_text: str) -> str:
    """Remove the boxes and the line breaks from a help text."""
    return re.sub(r"[│\s]+", " ", help_text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train tinny",
            "no preset 'tinny': did you mean tiny? The presets are bigram, tiny, tiny-fast, laptop",
        ),
        ("train xyz", "there is no preset 'xyz': the presets are bigram, tiny, tiny-fast, laptop"),
        ("train --train.stps 3", "there is no option --train.stps: did you mean --train.steps?"),
        ("train --train.stps=3", "there is no option --train.stps: did you mean --train.steps?"),
        ("train --train.stps 3 tiny", "no option --train.stps: did you mean --train.steps?"),
        ("train --steps 3", "there is no option --steps: did you mean --train.steps?"),
        ("train --batch_size 3", "no option --batch-size: did you mean --train.batch-size?"),
        ("train --train.no-compil", "no option --train.no-compil: did you mean --train.no-compile"),
        ("train --frob", "there is no option --frob; see nanogpt train --help"),
        (
            "train -x",
            "no option -x; see nanogpt train --help; if it is not an option: nanogpt train",
        ),
        ("study -x", "there is no option -x; see nanogpt study --help\n"),
        ("train bigram --model.n-head 3", "there is no option --model.n-head; see nanogpt train"),
        ("train --model.n-head 3 bigram", "there is no option --model.n-head; see nanogpt train"),
        ("train tiny more", "unexpected argument 'more'; see nanogpt train --help"),
        ("train -- tiny more", "unexpected argument 'more'; see nanogpt train --help"),
        ("train -- tinny", "there is no preset 'tinny': did you mean tiny?"),
        ("train --train.steps", "--train.steps needs a value, as in --train.steps=VALUE"),
        ("sample --prompt --json", "--prompt needs a value, as in --prompt=VALUE; if the value"),
        ("sample --prompt --", "--prompt needs a value, as in --prompt=VALUE; if the value looks"),
        ("sample --run tiny", "there is no option --run: give its value without a flag"),
        ("explain --json --size tiny", "there is no option --size: give its value without a flag"),
        ("tokenize -- a --json", "unexpected argument '--json'; see nanogpt tokenize --help"),
        ("presets -- -x", "unexpected argument '-x'; see nanogpt presets --help"),
        ("train --data --seed 3", "--data needs a value, as in --data=VALUE"),
        ("train --train.steps many", "--train.steps is 'many': it must be an integer"),
        (
            "train --model.n-embd 999999999999999999999",
            "--model.n-embd is '999999999999999999999': it must be an integer between -2**63 and",
        ),
        (
            "train --train.stop-at-val-loss nan",
            "--train.stop-at-val-loss is 'nan': it must be a number between -2**63 and 2**63 or",
        ),
        ("sample --temperature inf", "--temperature is 'inf': it must be a number between -2**63"),
        ("study scaling --seed -1e400", "--seed is '-1e400': it must be an integer"),
        ("train --optim.lr high", "--optim.lr is 'high': it must be a number"),
        ("train --train.patience x", "--train.patience is 'x': it must be an integer or None"),
        (
            "train --precision float64",
            "--precision is 'float64': it must be one of auto, float32, bfloat16, float16, float8",
        ),
        ("train tiny --model.n-layer 0", "--model.n-layer is 0: it must be at least 1"),
        (
            "train tiny --model.n-head 3",
            "--model.n-embd is 128: it must be a multiple of --model.n-head 3; "
            "try --model.n-embd 129",
        ),
        ("train --train.batch-size 0", "--train.batch-size is 0: it must be at least 1"),
        ("train --optim.lr -1", "--optim.lr is -1.0: it must be more than 0"),
        ("train --seed -1", "nanogpt: --seed is -1: it must be at least 0 and less than 2**63"),
        ("train --name a/b", "nanogpt: --name is 'a/b': it must be a file name without slashes"),
        ("train --name=", "nanogpt: --name is empty: give a value, or leave the option out"),
        ("train --device tpu", "there is no device 'tpu': use auto, cpu"),
        ("train --device=tpu", "there is no device 'tpu': use auto, cpu"),
        ("train --device cpu --device tpu", "there is no device 'tpu': use auto, cpu"),
        ("train --data=--device --device cpu", "there is no file or corpus --device: the corpora"),
        ("train --data nope.txt", "there is no file or corpus nope.txt: the corpora are tinysha"),
        ("sample", "there is no run in runs/ yet: "),
        ("sample nope", "there is no run 'nope'"),
        ("sample --samples 0", "nanogpt: --samples is 0: it must be at least 1"),
        ("sample --max-new-tokens 0", "nanogpt: --max-new-tokens is 0: it must be at least 1"),
        ("sample --top-k 0", "nanogpt: --top-k is 0: it must be at least 1"),
        ("sample --top_k 0", "nanogpt: --top-k is 0: it must be at least 1"),
        ("sample --top-p 2", "nanogpt: --top-p is 2.0: it must be more than 0 and at most 1"),
        ("sample --temperature -1", "nanogpt: --temperature is -1.0: it must be 0 or more"),
        (
            "sample --seed 99999999999999999999",
            "--seed is '99999999999999999999': it must be an int",
        ),
        ("sample --stop=", "nanogpt: --stop has an empty string: leave this string out"),
        ("eval --split test", "--split is 'test': it must be one of auto, val, train, all"),
        ("explain --jsn", "there is no option --jsn: did you mean --json?"),
        ("explain tinny", "there is no preset 'tinny': did you mean tiny?"),
        ("study", "nanogpt study needs a name: use one of ladder, scaling, distillation"),
        ("study laddr", "there is no study 'laddr': did you mean ladder?"),
        ("study all", "there is no study 'all': use one of ladder, scaling, distillation"),
        ("study ladder --stps 3", "there is no option --stps: did you mean --steps?"),
        ("presets all", "unexpected argument 'all'; see nanogpt presets --help"),
    ],
)
def test_a_mistake_prints_one_line(nanogpt: Command, arguments: str, message: str) -> None:
    assert_refused(nanogpt(*arguments.split()), message)
    assert not Path("runs").exists()


KINDS: dict[str, Any] = {
    "train": TrainArgs,
    "explain": ExplainArgs,
    "sample": SampleArgs,
    "eval": EvalArgs,
    "data": DataArgs,
    "tokenize": TokenizeArgs,
    "inspect": InspectArgs,
    "study ladder": LadderArgs,
    "study scaling": ScalingArgs,
}
OPTIONS = [
    (command, *option)
    for command, kind in KINDS.items()
    for option in _list_options(kind)
    if not option.has_type(bool)
]
"""The command, name, flag and type of every option and argument that has a value."""
WORDS = ["-x", "-", "-1", "-.5", "-x y", "- item", "---", "--- a", "--a b", "-x.txt", "-h=", "-\n-"]


@pytest.mark.parametrize(("command", "name", "flag", "hint"), OPTIONS)
def test_a_value_may_begin_with_a_hyphen(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, command: str, name: str, flag: str, hint: Any
) -> None:
    """tyro receives every value unchanged, and every option in the form --option=value."""
    received: list[str] = []

    def cli(*_: object, args: list[str], **__: object) -> object:
        received[:] = args
        raise SystemExit(2)

    monkeypatch.setattr(tyro, "cli", cli)
    for word in WORDS:
        for typed in (flag, flag.replace("-", "_").replace("__", "--", 1)):
            is_positional = positional in get_args(hint)
            arguments = ["--", word] if is_positional else [typed, word]
            nanogpt(*command.split(), *arguments)
            assert received[-1] == (word if is_positional else f"{typed}={word}")


@pytest.mark.parametrize(("command", "name", "flag", "hint"), OPTIONS)
def test_an_empty_name_path_or_number_is_refused(
    nanogpt: Command, command: str, name: str, flag: str, hint: Any
) -> None:
    if name in ("prompt", "stop", "separator", "text"):
        return
    if positional in get_args(hint):
        for arguments in ([""], ["--", ""]):
            assert_refused(nanogpt(*command.split(), *arguments), "unexpected argument ''; see")
        return
    for arguments in ([flag, ""], [f"{flag}="], [f"{flag}=", "--json"]):
        answer = nanogpt(*command.split(), *arguments)
        assert_refused(answer, f"{flag} is empty: give a value, or leave the option out")
    assert not os.listdir()


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (("-- -x",), [45, 120]),
        (("--", "-x"), [45, 120]),
        (("--", "--tokenizer"), [*b"--tokenizer"]),
        (("--", "--"), [45, 45]),
        (("- x",), [45, 32, 120]),
        (("-",), [45]),
        (("",), []),
    ],
)
def test_a_text_may_begin_with_a_hyphen(
    nanogpt: Command, arguments: tuple[str, ...], ids: list[int]
) -> None:
    if arguments == ("-- -x",):
        _, _, err = nanogpt("tokenize", "-x")
        arguments = tuple(shlex.split(err.partition(": nanogpt tokenize ")[2]))
    status, out, err = nanogpt("tokenize", "--json", "--tokenizer", "byte", *arguments)
    assert (status, err, json.loads(out)["ids"]) == (0, "", ids)


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_suggested_option_exists(kind: Any) -> None:
    options = _list_options(kind)
    known = {option.flag for option in options if not option.has_type(positional)}
    for option in options:
        last = "--" + option.flag.rpartition(".")[2].lstrip("-")
        for typed in (option.flag, option.flag[:-1], option.flag + "s", last):
            if typed not in known:
                error = str(_explain_unknown([typed], (), options, (), "nanogpt"))
                suggested = re.findall(r"(?:mean|or) (--[\w.-]+)", error)
                assert set(suggested) <= known, error
                assert suggested or "give its value without" in error or "see nanogpt" in error


@pytest.mark.parametrize("preset", PRESETS)
def test_help_has_the_defaults_of_the_preset(nanogpt: Command, preset: str) -> None:
    config = PRESETS[preset].config
    for arguments in ((preset, "--help"), ("-h", preset), ("--help", "--device", "cpu", preset)):
        status, out, _ = nanogpt("train", *arguments)
        assert status == 0
        assert re.search(r"^\W*\[PRESET\] +Preset to train", out, re.MULTILINE)
        assert f"(default: {preset})" in flatten(out)
        assert f"(default: {config.train.batch_size})" in flatten(out)
        assert f"(default: {config.optim.lr})" in flatten(out)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ["[PRESET]", "--resume [RUN]", "--train.steps INT"]),
        ("explain", ["[SIZE]", "--json", "--train.steps INT"]),
        ("sample", ["[RUN]", "--top-k INT", "--stop STR", "--prompt STR"]),
        ("study", ["ladder", "scaling"]),
    ],
)
def test_help_lists_everything_that_a_command_accepts(
    nanogpt: Command, command: str, options: list[str]
) -> None:
    out = nanogpt(command, "--help")[1]
    for option in options:
        assert re.search(rf"^\W*{re.escape(option)}(\s|│)", out, re.MULTILINE), option


@pytest.mark.parametrize("kind", [SampleArgs, LabArgs])
def test_help_texts_have_no_line_breaks_of_the_source(
    nanogpt: Command, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    out = nanogpt(kind.__name__.removesuffix("Args").lower(), "--help")[1]
    texts = [param.description for param in docstring_parser.parse_from_object(kind).params]
    assert any("\n" in str(text) for text in texts)
    for text in texts:
        assert " ".join(str(text).split()) in out


def test_sample_declares_no_sampling_option_again() -> None:
    own = set(SampleArgs.__annotations__)
    inherited = {each.name for each in fields(GenerationConfig)}
    assert inherited >= {"temperature", "top_k", "max_new_tokens", "stop", "seed"}
    assert not own & inherited


# These tests imitate other versions of tyro, which may print errors differently or fail.


def without_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the hook that passes errors to nanogpt, so that tyro prints its own messages."""
    monkeypatch.setitem(sys.modules, "tyro._errors", SimpleNamespace())


def print_and_exit(text: str) -> Callable[..., object]:
    def cli(*_: object, **__: object) -> object:
        print(text, file=sys.stderr)
        raise SystemExit(2)

    return cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--split test", "Invalid choice invalid choice 'test' for argument '--split'. Expected"),
        ("--splt val", "Unrecognized options Unrecognized options: --splt, val "),
        ("--split", "Missing argument Missing value for argument '--split'. Expected 1 values."),
    ],
)
def test_without_our_hook_tyro_prints_its_own_message(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    without_hook(monkeypatch)
    answer = nanogpt("eval", *arguments.split())
    assert_refused(answer, message)
    assert not re.search(r"[\u2500-\u257f]|  ", answer[2])


@pytest.mark.parametrize(
    "text",
    [
        "+-- Error ---+\n| no --splt  |\n+-----------+",
        "╔══ Error ══╗\n║ no --splt ║\n╚═══════════╝",
        "\x1b[31m┏━━ Error ━━┓\x1b[0m\n┃ no --splt ┃",
        "Error\n=====\n\n  no --splt\n",
        "# Error\n***\nno\n--splt",
    ],
)
def test_lines_and_boxes_around_an_error_are_removed(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(tyro, "cli", print_and_exit(text))
    assert nanogpt("eval") == (2, "", "nanogpt: Error no --splt\n")


@pytest.mark.parametrize("text", ["", "\n", "╭────╮\n╰────╯", "+---+"])
def test_an_error_without_text_refers_to_the_help(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(tyro, "cli", print_and_exit(text))
    says = "nanogpt: cannot understand the arguments; see nanogpt eval --help\n"
    assert nanogpt("eval") == (2, "", says)


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), TypeError("x"), OSError("x")])
def test_an_exception_in_tyro_refers_to_the_help(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(tyro, "cli", fail)
    says = "nanogpt: cannot understand the arguments; see nanogpt eval --help\n"
    assert nanogpt("eval") == (2, "", says)


def test_the_help_works_if_an_error_has_no_text(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tyro.cli

    def cli(*rest: Any, args: list[str], **options: Any) -> object:
        if "--help" not in args:
            raise SystemExit(2)
        return original(*rest, args=args, **options)

    monkeypatch.setattr(tyro, "cli", cli)
    _, _, err = nanogpt("eval", "--splt", "val")
    status, out, _ = nanogpt(
        *err.partition("cannot understand the arguments; see nanogpt ")[2].split()
    )
    assert status == 0
    assert "--split" in out


def test_an_unknown_kind_of_error_shows_its_own_text(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another version of tyro, the error objects may have other names or fields."""
    monkeypatch.setattr("nanogpt.cli.arguments._explain_event", lambda *_: None)
    assert_refused(nanogpt("eval", "--splt", "val"), "Unrecognized options: --splt, val")

    def fail(*_: object) -> None:
        raise AttributeError("argument")

    monkeypatch.setattr("nanogpt.cli.arguments._explain_event", fail)
    assert_refused(nanogpt("eval", "--splt", "val"), "Unrecognized options: --splt, val")
