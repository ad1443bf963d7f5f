"""Without a permission, a command works as before, or its error names the path and a remedy."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import Stopped, UserError
from nanogpt.runs.checkpoint import Best, load_checkpoint
from nanogpt.runs.config import RunConfig
from nanogpt.runs.journal import Record
from nanogpt.runs.reporter import Reporter
from nanogpt.text.corpora import load_corpus
from nanogpt.text.encoding import encode_corpus
from nanogpt.text.tokenizers import ByteTokenizer
from nanogpt.train import train
from tests.platforms import linux_only, posix_only, without_privileges

pytestmark = posix_only
Answer = tuple[int, str, str]
Command = Callable[..., Answer]

READERS = [
    "sample runs/mine --max-new-tokens 5",
    "sample mine --max-new-tokens 5",
    "sample --max-new-tokens 5",
    "sample runs/mine --max-new-tokens 5 --prompt-file words.txt",
    "eval runs/mine",
    "eval",
    "eval mine --data words.txt",
    "inspect runs/mine --prompt abc --out ../page.html",
    "explain runs/mine --json",
    "explain mine --json",
    "tokenize abc --tokenizer runs/mine",
    "tokenize abc --tokenizer runs/mine/best/tokenizer.json",
    "tokenize abc --data words.txt",
    "data words.txt",
    "data .",
    "data *.txt",
    "data **/w*.txt",
]
"""Commands that read the run and the text, and write no file in the directory `theirs`."""
WRITERS = [
    "train --data words.txt",
    "train --data words.txt --out new",
    "train --data words.txt --out runs/mine",
    "train --resume runs/mine",
    "train --resume",
    "inspect runs/mine --prompt abc --out page.html",
    "data words.txt --save copy.txt",
    "study ladder --data words.txt --steps 1 --out runs/ladder",
]
"""Commands that write in the directory `theirs`."""
DENIED = r"nanogpt: cannot (access|write|write in) \S+: Permission denied; [^\n]+\n"


@pytest.fixture
def theirs(
    nanogpt: Command, small: list[str], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, which contains a text and a run."""
    home = Path("theirs").resolve()
    home.mkdir()
    shutil.move(text_file, home / "words.txt")
    monkeypatch.chdir(home)
    status, _, err = nanogpt("train", "--data", "words.txt", "--out", "runs/mine", *small)
    assert (status, err) == (0, "")
    return home


def run_all(nanogpt: Command, commands: list[str], flags: list[str]) -> dict[str, Answer]:
    """Run commands; return their answers. Leave out the output of `explain`: its times vary."""
    answers = {}
    for command in commands:
        is_new_run = command.startswith("train") and "--resume" not in command
        status, out, err = nanogpt(*command.split(), *(flags if is_new_run else ()))
        answers[command] = status, "" if command.startswith("explain") else out, err
    return answers


@contextmanager
def forbidden(home: Path, name: str, mode: int) -> Iterator[None]:
    """Within this context, this user has only the permission `mode` for home/name.

    `mode` is NONE, SEARCH, READ or LIST. If this user is root, another user becomes the owner of
    all files in `home`, and root must obey permissions, too.
    """
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, 65534, 65534)
    path = home / name
    saved = path.stat().st_mode
    path.chmod(mode * 0o111)
    try:
        with without_privileges():
            yield
    finally:
        path.chmod(saved)


NONE, SEARCH, READ, LIST = 0, 1, 4, 5
CASES = [
    *((name, mode) for name in (".", "runs", "runs/mine") for mode in (NONE, SEARCH, READ, LIST)),
    *((f"runs/mine/{name}", mode) for name in ("best", "last") for mode in (NONE, READ)),
    *((f"runs/mine/{name}", NONE) for name in ("run.json", "metrics.jsonl", ".lock", ".pid")),
    *((f"runs/mine/best/{name}", NONE) for name in ("SHA256SUMS", "config.json")),
    *((f"runs/mine/best/{name}", NONE) for name in ("model.safetensors", "tokenizer.json")),
    ("words.txt", NONE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_command_works_as_before_or_names_the_path(
    nanogpt: Command, theirs: Path, small: list[str], name: str, mode: int
) -> None:
    expected = run_all(nanogpt, READERS, small)
    with forbidden(theirs, name, mode):
        answers = run_all(nanogpt, READERS, small)
    for command, answer in answers.items():
        is_denied = answer[:2] == (2, "") and re.fullmatch(DENIED, answer[2])
        assert answer == expected[command] or is_denied, (command, answer)
    unused = ("last", "metrics.jsonl", ".lock", ".pid")
    assert answers != expected or mode in (SEARCH, LIST) or name.endswith(unused)


@pytest.mark.slow
def test_a_run_can_be_read_without_write_permission(
    nanogpt: Command, theirs: Path, small: list[str]
) -> None:
    expected = run_all(nanogpt, READERS, small)
    for path in theirs.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with forbidden(theirs, ".", LIST):
        assert run_all(nanogpt, READERS, small) == expected
        for command, (status, _, err) in run_all(nanogpt, WRITERS, small).items():
            assert status == 2, command
            assert re.fullmatch(DENIED, err), (command, err)


@pytest.mark.slow
def test_inspect_writes_to_the_current_directory_if_the_run_is_read_only(
    nanogpt: Command, theirs: Path
) -> None:
    with forbidden(theirs, "runs/mine", LIST):
        os.chdir(theirs.parent)
        assert nanogpt("inspect", "theirs/runs/mine", "--prompt", "abc") == (
            0,
            "inspect.html\n",
            "",
        )


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_read_only_is_not_resumed(
    nanogpt: Command, theirs: Path
) -> None:
    """If it were resumed, it could write a new checkpoint, but could not remove the old one."""
    for path in Path("runs/mine").iterdir():
        path.chmod(0o666)
    Path("runs/mine/best").chmod(0o777)
    Path("runs/mine").chmod(0o777)
    files = sorted(theirs.rglob("*"))
    with forbidden(theirs, "runs/mine/last", LIST):
        status, _, err = nanogpt("train", "--resume", "runs/mine", "--train.steps", "30")
    assert (status, err) == (
        2,
        "nanogpt: cannot access runs/mine/last: Permission denied; change its permissions, or copy "
        "runs/mine and resume the copy\n",
    )
    assert sorted(theirs.rglob("*")) == files
    with forbidden(theirs, "runs/mine/last", LIST):
        shutil.copytree("runs/mine", "../copy")
        os.chdir("..")
        Path("copy/last").chmod(0o755)
        resumed = ("train", "--resume", "copy", "--train.steps", "30", "--data", "theirs/words.txt")
        assert nanogpt(*resumed)[::2] == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs/mine/run.json", "runs/mine/best", "runs/mine", "runs"])
def test_the_error_names_the_forbidden_path_or_a_path_inside_it(
    nanogpt: Command, theirs: Path, name: str
) -> None:
    with forbidden(theirs, name, NONE):
        status, _, err = nanogpt("eval", "runs/mine")
    named = re.match("nanogpt: cannot access (.+?): Permission denied; change its permi", err)
    assert (status, bool(named)) == (2, True), err
    assert named is None or Path(name) in (Path(named[1]), *Path(named[1]).parents)
    with without_privileges():  # forbidden() has restored the permissions
        assert nanogpt("eval", "runs/mine")[::2] == (0, "")


@pytest.mark.slow
def test_a_run_that_becomes_read_only_resumes_when_it_is_writable_again(
    nanogpt: Command, config: RunConfig
) -> None:
    class ReadOnlyAt20(Reporter):
        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == 20:
                Path("mine").chmod(0o555)

    error = r"^cannot write in mine \(Permission denied\): make it writable, then resume with: nano"
    with without_privileges():
        with pytest.raises(Stopped, match=error) as stopped:
            train(replace(config, out=Path("mine")), ReadOnlyAt20())
        Path("mine").chmod(0o755)
        assert nanogpt(*str(stopped.value).split(": nanogpt ")[1].split())[::2] == (0, "")
    assert load_checkpoint("mine/last").step == 60


def test_runs_that_cannot_be_read_are_not_chosen(nanogpt: Command, theirs: Path) -> None:
    shutil.copytree("runs/mine", "runs/newer")
    with forbidden(theirs, "runs/newer", NONE):
        assert "runs/mine" in nanogpt("eval")[1]
        assert "the runs in runs/: runs/mine\n" in nanogpt("eval", "nope")[2]


def test_token_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    for split in ("train", "val"):
        (home / "words").mkdir(parents=True, exist_ok=True)
        (home / "words" / f"{split}.bin").write_bytes(bytes(200))
    data = str(home / "words")
    corpus = load_corpus(data)
    for name, mode in (("words", NONE), ("words", READ), ("words/train.bin", NONE)):
        with forbidden(home, name, mode):
            with pytest.raises(UserError, match=r"cannot access .*words.*: Permission denied"):
                load_corpus(data)
            with pytest.raises(UserError, match=r"cannot access .*words.*: Permission denied"):
                encode_corpus(corpus, ByteTokenizer(), "train")


def test_a_pattern_does_not_skip_directories_that_cannot_be_read(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    for name in ("a/b/c", "a/d/c"):
        (home / name).mkdir(parents=True)
        (home / name / "x.txt").write_text("abc")
    for pattern in ("a/*/c/x.txt", "a/*/c/*.txt", "a/**/*.txt", "*/b/c/x*"):
        for name in (".", "a", "a/b", "a/b/c"):
            message = r"cannot access .*theirs.*: Permission denied"
            with forbidden(home, name, NONE), pytest.raises(UserError, match=message):
                load_corpus(str(home / pattern))
        with forbidden(home, "a", LIST):
            assert load_corpus(str(home / pattern)).text()


def test_a_text_needs_no_cache(
    tmp_path: Path, nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "theirs" / "cache"
    cache.mkdir(parents=True)
    Path("words.txt").write_text("a few words " * 20)
    monkeypatch.setenv("NANOGPT_CACHE", str(cache))
    expected = nanogpt("data", "words.txt")
    assert expected[0] == 0
    for mode in (NONE, LIST):
        with forbidden(cache.parent, "cache", mode):
            assert nanogpt("data", "words.txt") == expected


@pytest.mark.slow
@linux_only
def test_a_real_user_without_privileges(theirs: Path) -> None:
    """Run a command as the user 65534, if that user can run this Python."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    command = [sys.executable, "-m", "nanogpt", "sample", str(theirs / "runs" / "mine")]
    user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "text": True}
    try:
        subprocess.run([sys.executable, "-c", "import nanogpt.api"], check=True, **user)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the user 65534 cannot run this Python")
    for parent in (theirs / "runs" / "mine").parents:
        if parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o111)
    answer = subprocess.run(command, capture_output=True, check=True, **user)
    assert answer.stdout
    (theirs / "runs").chmod(0o700)
    answer = subprocess.run(command, capture_output=True, check=False, **user)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(DENIED, answer.stderr)
