"""The package uses no feature that Windows or macOS lacks, except in a few known modules."""

import ast
import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nanogpt
from nanogpt import errors
from nanogpt.cli import output
from nanogpt.cli.main import main
from nanogpt.cli.output import is_broken_pipe
from nanogpt.errors import join_command, resume_command
from tests.platforms import posix_only
from tests.texts import LANGUAGES

HOME = Path(nanogpt.__file__).parent
SOURCES = {
    file.relative_to(HOME).as_posix(): ast.parse(file.read_text("utf-8"))
    for file in sorted(HOME.rglob("*.py"))
}
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = {
    *("os.fork", "os.geteuid", "os.getuid", "os.kill", "os.killpg", "os.mkfifo", "os.setsid"),
    *("signal.alarm", "signal.pause", "signal.setitimer", "signal.sigwait", "os.symlink"),
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the package: its file, the dotted name of the function, and the call."""
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), node


def test_text_files_have_an_encoding_and_line_ending() -> None:
    """On Windows, language settings change the default encoding, and lines end with \\r\\n."""
    for file, name, call in calls():
        method = name.rpartition(".")[2]
        options = {keyword.arg for keyword in call.keywords}
        line = f"{file}:{call.lineno}: {ast.unparse(call)}"
        if method == "read_text" and name != "read_text":
            assert call.args or "encoding" in options, line
        elif method == "write_text":
            assert len(call.args) > 1 or "encoding" in options, line
            assert "newline" in options, line
        elif method == "open" and name not in ("os.open", "self._open", "webbrowser.open"):
            modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
            assert modes, line
            if not any("b" in str(mode) for mode in modes):
                assert {"encoding", "newline"} <= options, line


def test_only_one_module_renames_files() -> None:
    """Windows refuses to rename a file while another process has it open.

    replace_path() waits until that process closes the file.
    """
    for file, name, _ in calls():
        is_rename = name in ("os.replace", "os.rename", "shutil.move") or name.endswith(".rename")
        assert not is_rename or file == "system/files.py", file


def test_only_two_modules_look_up_c_functions() -> None:
    found = {file for file, name, _ in calls() if name == "ctypes.CDLL"}
    assert found == {"system/libc.py", "fast/cublas.py"}


def test_nothing_needs_posix() -> None:
    # os.kill() with SIGTERM exists on Windows; there, it ends the process without a checkpoint.
    used = {(file, name) for file, name, _ in calls() if name in POSIX_CALLS}
    assert used == {("lab/training.py", "os.kill"), ("system/heartbeat.py", "os.kill")}
    for tree in SOURCES.values():
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert not POSIX_MODULES & {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in POSIX_MODULES


# Tests of console output and of shell commands.


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (errors, output):
        monkeypatch.setattr(module, "os", SimpleNamespace(name="nt"))


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize("command", ["tokenize", "data", "presets", "explain"])
def test_a_console_without_unicode_shows_escapes(
    encoding: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("text.txt").write_text("".join(LANGUAGES), "utf-8", newline="\n")
    arguments = {
        "tokenize": ["--tokenizer", "byte", LANGUAGES[1]],
        "data": ["text.txt"],
        "presets": [],
        "explain": ["tiny", "--device", "cpu"],
    }
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", console)
        main([command, *arguments[command]])
        console.flush()
    assert console.buffer.getvalue().decode(encoding)


@pytest.mark.usefixtures("windows")
def test_on_windows_the_error_einval_means_a_closed_pipe() -> None:
    closed = OSError(errno.EINVAL, "Invalid argument")
    assert is_broken_pipe(closed)
    assert is_broken_pipe(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert not is_broken_pipe(OSError(errno.ENOSPC, "No space left on device"))


def test_on_other_systems_the_error_einval_does_not_mean_a_closed_pipe() -> None:
    if os.name == "nt":
        pytest.skip("this is Windows")
    assert not is_broken_pipe(OSError(errno.EINVAL, "Invalid argument"))
    assert is_broken_pipe(BrokenPipeError(errno.EPIPE, "Broken pipe"))


@pytest.mark.usefixtures("windows")
def test_a_command_is_quoted_for_windows() -> None:
    assert join_command(["nanogpt", "--out", r"my runs\one"]) == r'nanogpt --out "my runs\one"'


@posix_only
@settings(max_examples=20)
@given(
    st.lists(
        st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))), min_size=1
    )
)
def test_a_command_is_quoted_for_a_shell(words: list[str]) -> None:
    """Words may contain line breaks, control characters and bytes that are not UTF-8."""
    command = join_command(["printf", r"%s\0", *words])
    assert command.isprintable()
    split = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert split == b"".join(os.fsencode(word) + b"\0" for word in words)


def test_a_path_that_starts_with_a_hyphen_is_not_an_option() -> None:
    assert resume_command(Path("-x")).endswith("--resume ./-x" if os.name == "posix" else "-x")
