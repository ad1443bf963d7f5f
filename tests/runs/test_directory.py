"""Run directories: made, found, and kept to one training at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nanogpt.runs.directory import find_run, lock_run, make_run_directory
from nanogpt.text.tokenizers import CharTokenizer
from tests.platforms import needs_links


@pytest.fixture
def best() -> Path:
    """A saved checkpoint, in a run of its own."""
    directory = Path("runs/one/best")
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3))
    save_checkpoint(directory, Checkpoint(model, CharTokenizer("abc"), 7))
    return directory


def test_runs_get_directories_of_their_own() -> None:
    made = [make_run_directory(None, "tiny")[0] for _ in range(3)]
    assert made == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]
    assert make_run_directory(Path("here/below"), "tiny")[0] == Path("here/below")


def test_a_directory_that_holds_a_run_is_refused() -> None:
    mine, lock = make_run_directory(Path("mine"), "tiny")
    lock.release()
    (mine / "run.json").write_text("{}")
    with pytest.raises(UserError, match="mine already holds a run: name another, such as --out"):
        make_run_directory(Path("mine"), "tiny")
    lock_run(mine).release()  # and is not kept locked


def test_a_directory_that_cannot_be_written_is_refused() -> None:
    Path("file").touch()
    with pytest.raises(UserError, match="cannot write in file/run: Not a directory; name another"):
        make_run_directory(Path("file/run"), "tiny")


def test_another_process_that_trains_there_is_named(tmp_path: Path) -> None:
    code = (
        "from nanogpt.runs.directory import *; lock = lock_run(Path('.')); "
        "print('here', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "here\n"
    says = rf"process {other.pid} is training in \.: wait for it, stop it, or name another"
    for _ in range(2):
        with pytest.raises(UserError, match=says):
            lock_run(tmp_path.relative_to(Path.cwd()))
    other.kill()
    other.communicate()
    lock_run(Path()).release()  # what a dead process held is free
    assert Path(".pid").read_text() == f"{os.getpid()}\n"


def test_a_lock_file_that_cannot_be_read_or_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows refuses both while the file is locked, even to the process that holds the lock."""
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    lock = lock_run(Path())
    try:
        with pytest.raises(UserError, match=rf"process {os.getpid()} is training in \."):
            lock_run(Path())
        Path(".pid").unlink()
        with pytest.raises(UserError, match=r"process unknown is training in \."):
            lock_run(Path())
    finally:
        lock.release()


@needs_links
def test_a_lock_that_leads_elsewhere_is_not_followed() -> None:
    Path("secret").write_text("mine")
    Path("run").mkdir()
    Path("run/.lock").symlink_to("../secret")
    with pytest.raises(UserError, match=r"run/\.lock is a link: to train there, put the file its"):
        lock_run(Path("run"))
    assert Path("secret").read_text() == "mine"


@needs_links
@pytest.mark.parametrize("name", ["last", "best", ".last.new", "metrics.jsonl", "loss.png"])
def test_nothing_is_trained_where_a_link_is(best: Path, name: str) -> None:
    Path("elsewhere").mkdir()
    (best.parent / "linked").mkdir()
    (best.parent / "linked" / name).symlink_to(Path("elsewhere").resolve())
    with pytest.raises(UserError, match=f"{name} is a link: to train there"):
        make_run_directory(best.parent / "linked", "tiny")
    assert not list(Path("elsewhere").iterdir())


@needs_links
def test_a_checkpoint_that_leads_out_of_the_run_is_not_read(best: Path) -> None:
    Path("runs/two").mkdir()
    Path("runs/two/best").symlink_to(best.resolve())
    with pytest.raises(UserError, match=r"best is a link that leads out of runs/two: put the file"):
        find_run("two")


def test_a_run_is_found_by_path_by_name_or_by_age(best: Path) -> None:
    assert find_run("runs/one") == Path("runs/one")
    assert find_run("one") == Path("runs/one")
    assert find_run(None) == Path("runs/one")
    for name in ("two", "later"):
        save_checkpoint(Path("runs", name, "best"), load_checkpoint(best))
        assert find_run(None) == Path("runs", name)
    save_checkpoint(
        Path("runs/begun/last"), load_checkpoint(best)
    )  # the newest to go on with has no best yet
    assert find_run(None, "last") == find_run("begun", "last") == Path("runs/begun")
    assert find_run(None) == Path("runs/later")


def test_a_name_too_long_for_a_file_is_no_run() -> None:
    with pytest.raises(UserError, match="there is no run xxx"):
        find_run("x" * 300)


def test_a_run_cut_short_while_it_replaced_best_is_found(best: Path) -> None:
    best.rename(best.with_name(".best.old"))
    assert find_run("one") == Path("runs/one")
    assert load_checkpoint(best).step == 7


def test_a_run_that_is_not_there_is_named(best: Path) -> None:
    with pytest.raises(UserError, match="there is no run two; the runs in runs/: runs/one"):
        find_run("two")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run: it has no best/; train one"):
        find_run("empty")


def test_without_any_run_the_way_to_one_is_named() -> None:
    with pytest.raises(UserError, match="there is no run in runs/ yet: make one with `nanogpt tra"):
        find_run(None)


def test_a_run_that_was_not_measured_yet_says_so(best: Path) -> None:
    best.rename(best.parent / "last")
    with pytest.raises(UserError, match="stopped before its first evaluation: go on with nanogpt"):
        find_run(str(best.parent))
    assert find_run(str(best.parent), "last") == best.parent
