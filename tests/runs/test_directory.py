"""Run directories are created and found; only one process at a time can lock a directory."""

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanogpt.api import load
from nanogpt.errors import UserError
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nanogpt.runs.directory import find_run, find_tokenizer, lock_run, make_run_directory
from nanogpt.text.tokenizers import CharTokenizer
from tests.platforms import needs_links


@pytest.fixture
def best() -> Path:
    """The checkpoint best/ of a run."""
    directory = Path("runs/one/best")
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3))
    save_checkpoint(directory, Checkpoint(model, CharTokenizer("abc"), 7))
    return directory


def test_an_empty_name_is_no_run(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a path, "" means the working directory, so the test tries three working directories."""
    for directory in (best.parent.parent, best.parent.resolve(), best.resolve()):
        monkeypatch.chdir(directory)
        for find in (find_run, load):
            with pytest.raises(UserError, match="there is no run ''; the runs in runs/: none yet"):
                find("")


def test_the_name_of_a_run_stands_for_its_tokenizer(best: Path) -> None:
    for run in ("one", "runs/one", str(Path("runs/one").resolve())):
        file = Path(find_tokenizer(run))
        assert file.samefile(best / "tokenizer.json")
        assert find_tokenizer(str(file)) == str(file)
    for kind in ("char", "bpe", "bpe:300", "byte", "unknown"):
        # If a run and a kind of tokenizer have the same name, this name means the kind.
        Path("runs", kind.replace("unknown", "char")).mkdir(exist_ok=True)
        assert find_tokenizer(kind) == kind


def test_each_new_run_gets_its_own_directory() -> None:
    directories = [make_run_directory(None, "tiny")[0] for _ in range(3)]
    assert directories == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]
    assert make_run_directory(Path("here/below"), "tiny")[0] == Path("here/below")


def test_a_directory_that_holds_a_run_is_refused() -> None:
    mine, lock = make_run_directory(Path("mine"), "tiny")
    lock.release()
    (mine / "run.json").write_text("{}")
    with pytest.raises(UserError, match="mine already holds a run: name another directory, such"):
        make_run_directory(Path("mine"), "tiny")
    lock_run(mine).release()  # succeeds, because the refused call released its lock


@pytest.mark.parametrize("name", ["notes.txt", "last/mine.txt", "metrics.jsonl", ".hidden"])
def test_a_directory_with_other_files_is_refused_and_not_changed(name: str) -> None:
    file = Path("mine", name)
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    says = f"mine contains files that do not belong to a run, such as {Path(name).parts[0]}: name"
    with pytest.raises(UserError, match=says):
        make_run_directory(Path("mine"), "tiny")
    assert file.read_text() == "mine"
    assert [entry.name for entry in Path("mine").iterdir()] == [Path(name).parts[0]]


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again() -> None:
    mine, lock = make_run_directory(Path("mine"), "tiny")
    (mine / "metrics.jsonl").touch()
    (mine / ".last.new").mkdir()
    (mine / ".run.json.new").touch()
    lock.release()
    make_run_directory(mine, "tiny")[1].release()
    (mine / "notes.txt").touch()
    with pytest.raises(UserError, match=r"such as notes\.txt"):
        make_run_directory(mine, "tiny")


def test_runs_that_start_at_the_same_instant_get_different_numbers() -> None:
    with ThreadPoolExecutor(16) as pool:
        made = [*pool.map(lambda _: make_run_directory(None, "tiny")[0], range(16))]
    assert len({*made}) == 16


def test_a_directory_that_cannot_be_written_is_refused() -> None:
    Path("file").touch()
    with pytest.raises(UserError, match="cannot write in file/run: Not a directory; name another"):
        make_run_directory(Path("file/run"), "tiny")


def test_a_directory_locked_by_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "from nanogpt.runs.directory import *; lock = lock_run(Path('.')); "
        "print('here', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "here\n"
    message = rf"process {other.pid} is training in \.: wait for it"
    for _ in range(2):
        with pytest.raises(UserError, match=message + " or stop it$"):
            lock_run(tmp_path.relative_to(Path.cwd()))
        with pytest.raises(UserError, match=message + ", stop it, or name another directory with"):
            make_run_directory(Path(), "gpt")
    other.kill()
    other.communicate()
    lock_run(Path()).release()  # succeeds, because a dead process holds no lock
    assert Path(".pid").read_text() == f"{os.getpid()}\n"


def test_a_lock_file_that_cannot_be_read_or_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows refuses to read or write a locked file, even in the process that holds the lock."""
    open_file = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, *args, **options)

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
def test_a_lock_file_that_is_a_link_is_not_followed() -> None:
    Path("secret").write_text("mine")
    Path("run").mkdir()
    Path("run/.lock").symlink_to("../secret")
    with pytest.raises(UserError, match=r"run/\.lock is a link: to train here, replace the link"):
        lock_run(Path("run"))
    assert Path("secret").read_text() == "mine"


@needs_links
@pytest.mark.parametrize("name", ["last", "best", ".last.new", "metrics.jsonl", "loss.png"])
def test_a_directory_that_contains_a_link_is_refused(best: Path, name: str) -> None:
    Path("elsewhere").mkdir()
    (best.parent / "linked").mkdir()
    (best.parent / "linked" / name).symlink_to(Path("elsewhere").resolve())
    with pytest.raises(UserError, match=f"{name} is a link: to train here"):
        make_run_directory(best.parent / "linked", "tiny")
    assert not list(Path("elsewhere").iterdir())


@needs_links
def test_a_checkpoint_that_is_a_link_out_of_the_run_is_not_read(best: Path) -> None:
    Path("runs/two").mkdir()
    Path("runs/two/best").symlink_to(best.resolve())
    with pytest.raises(UserError, match=r"best is a link that leads out of runs/two: replace"):
        find_run("two")


def test_a_run_is_found_by_path_or_name_and_the_newest_by_default(best: Path) -> None:
    assert find_run("runs/one") == Path("runs/one")
    assert find_run("one") == Path("runs/one")
    assert find_run(None) == Path("runs/one")
    for name in ("two", "later"):
        time.sleep(0.02)  # the times of some file systems advance every 10 ms
        save_checkpoint(Path("runs", name, "best"), load_checkpoint(best))
        assert find_run(None) == Path("runs", name)
    # The newest run can be resumed, but it has no best/ yet.
    time.sleep(0.02)
    save_checkpoint(Path("runs/started/last"), load_checkpoint(best))
    assert find_run(None, "last") == find_run("started", "last") == Path("runs/started")
    assert find_run(None) == Path("runs/later")


def test_a_run_with_a_name_too_long_for_a_file_is_not_found() -> None:
    with pytest.raises(UserError, match="there is no run 'xxx"):
        find_run("x" * 300)


def test_a_run_is_found_after_an_interrupted_replacement_of_best(best: Path) -> None:
    best.rename(best.with_name(".best.old"))
    assert find_run("one") == Path("runs/one")
    assert load_checkpoint(best).step == 7


def test_a_missing_run_is_named(best: Path) -> None:
    with pytest.raises(UserError, match="there is no run 'two'; the runs in runs/: runs/one"):
        find_run("two")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty is not a run: it has no best/; give the dir"):
        find_run("empty")


def test_without_any_run_the_error_says_how_to_train_one() -> None:
    with pytest.raises(UserError, match="there is no run in runs/ yet: train one with `nanogpt t"):
        find_run(None)


def test_the_error_about_a_run_without_best_says_how_to_resume_it(best: Path) -> None:
    best.rename(best.parent / "last")
    with pytest.raises(UserError, match="stopped before its first evaluation: resume it with nano"):
        find_run(str(best.parent))
    assert find_run(str(best.parent), "last") == best.parent


@needs_links
@pytest.mark.parametrize("link", ["runs", "runs/tiny"])
def test_a_broken_link_causes_no_endless_loop(link: str) -> None:
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to("nowhere")
    if link == "runs":
        with pytest.raises(UserError, match="cannot write in runs/tiny: "):
            make_run_directory(None, "tiny")
    else:
        assert make_run_directory(None, "tiny")[0] == Path("runs/tiny-2")
