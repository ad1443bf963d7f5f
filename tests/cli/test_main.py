"""The help, each kind of error, and the modules that a command imports."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from nanogpt import __version__
from nanogpt.cli.main import COMMANDS
from nanogpt.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.platforms import linux_only

from .answers import Command, assert_refused

Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(nanogpt: Command, arguments: tuple[str, ...]) -> None:
    status, out, _ = nanogpt(*arguments)
    assert status == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(nanogpt: Command, command: str) -> None:
    status, out, err = nanogpt(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: nanogpt {command} [-h]")


def test_version(nanogpt: Command) -> None:
    assert nanogpt("--version") == (0, f"nanogpt {__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "there is no command 'trian': did you mean train?"),
        ("frob", "there is no command 'frob': use one of train, sample, eval, data, tokenize, ins"),
    ],
)
def test_an_unknown_command_is_refused(nanogpt: Command, command: str, message: str) -> None:
    assert_refused(nanogpt(command), message)


def test_control_characters_in_an_error_are_escaped(nanogpt: Command, run: Path) -> None:
    _, _, err = nanogpt("sample", "\x1b[2J")
    assert err.startswith("nanogpt: there is no run '\\x1b[2J'; the runs in runs/: ")
    _, _, err = nanogpt("sample", "two\nlines")
    assert err.startswith("nanogpt: there is no run 'two\\nlines'; ")


LONG_NAME, BAD_NAME = "x" * 300, "bad\udcff"


@linux_only  # Windows and macOS limit names differently; macOS refuses names that are not UTF-8
@pytest.mark.parametrize("name", [LONG_NAME, "/".join(["y" * 200] * 30), BAD_NAME])
def test_a_name_that_cannot_be_used_prints_one_line(
    nanogpt: Command, run: Path, small: list[str], name: str
) -> None:
    Path("runs").mkdir()
    before = {*Path().rglob("*")}
    train = ("train", "--data", "words.txt", *small)
    for command in (
        (*train, f"--name={name}"),
        (*train, f"--out={name}"),
        (*train, f"--tokenizer={name}"),
        ("train", f"--data={name}"),
        ("train", "--resume", name),
        ("train", name),
        ("sample", name),
        ("sample", run, f"--prompt={name}"),
        ("sample", run, f"--prompt-file={name}"),
        ("sample", run, "--prompt=a", f"--stop={name}"),
        ("eval", name),
        ("eval", run, f"--data={name}"),
        ("data", name),
        ("data", f"{name}/*.txt"),
        ("data", f"http://127.0.0.1:9/{name}"),
        ("tokenize", "a", f"--tokenizer={name}"),
        ("inspect", name),
        ("inspect", run, f"--prompt={name}"),
        ("explain", name),
    ):
        assert_refused(nanogpt(*command), "")
    for command in (("inspect", run, f"--out={name}"), ("data", "words.txt", f"--save={name}")):
        if name != BAD_NAME:  # Linux can create a file named BAD_NAME
            assert_refused(nanogpt(*command), "File name too long; name another file with --")
    assert {*Path().rglob("*")} == before


@linux_only
def test_a_run_whose_path_is_not_utf8_is_refused(nanogpt: Command, run: Path) -> None:
    """The library safetensors cannot open the files of such a run."""
    bad = run.rename(BAD_NAME)
    for command in (["sample"], ["eval"], ["inspect"], ["train", "--resume"]):
        assert_refused(nanogpt(*command, bad), "is not valid UTF-8: rename it")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_a_damaged_run_is_refused(nanogpt: Command, run: Path, command: str) -> None:
    weights = run / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(nanogpt(command, run), "mine/best/model.safetensors is missing or damaged")
    (run / "best" / "config.json").write_text('{"model": ')
    assert_refused(nanogpt(command, run), "mine/best/config.json is missing or damaged")


def test_a_failure_prints_one_line_and_has_status_1(nanogpt: Command, run: Path) -> None:
    shutil.copytree(run, "other")
    checkpoint = load_checkpoint(run / "best")
    with torch.no_grad():
        next(checkpoint.model.parameters()).fill_(float("nan"))
    save_checkpoint(run / "best", checkpoint)
    status, _, err = nanogpt("sample", run, "--prompt", "a")
    assert status == 1
    assert re.fullmatch(r"nanogpt: the model's logits are not finite[^\n]+; use another run\n", err)
    assert nanogpt("sample", "other", "--prompt", "a", "--max-new-tokens", 2)[0] == 0


def test_a_bug_keeps_its_traceback(nanogpt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> None:
        raise ValueError("not a mistake of the user")

    monkeypatch.setattr("nanogpt.cli.presets.presets", fail)
    with pytest.raises(ValueError, match="not a mistake"):
        nanogpt("presets")


# Tests that start a new process.


def list_modules(*args: str) -> set[str]:
    """Return the names of the modules that a command imports."""
    code = "import sys; from nanogpt.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_no_large_library() -> None:
    modules = list_modules("--help")
    assert "nanogpt.cli.main" in modules
    assert not {"torch", "numpy", "matplotlib", "pooch", "tyro", "rich"} & modules


def test_tokenize_does_not_load_torch() -> None:
    modules = list_modules("tokenize", "abc", "--tokenizer", "byte")
    assert "nanogpt.cli.tokenize" in modules
    assert not {"torch", "matplotlib", "pooch"} & modules


def test_data_does_not_load_torch(text_file: Path) -> None:
    modules = list_modules("data", str(text_file))
    assert "nanogpt.cli.data" in modules
    assert not {"torch", "matplotlib", "pooch", "tokenizers"} & modules


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(process: Process, run: Path) -> None:
    with process("sample", run, "--prompt", "a", "--max-new-tokens", 100_000) as sampling:
        assert sampling.stdout is not None
        assert sampling.stderr is not None
        assert len(sampling.stdout.read(10)) == 10  # the command prints while it generates
        sampling.stdout.close()
        assert sampling.wait(timeout=60) == 0
        assert sampling.stderr.read() == ""
