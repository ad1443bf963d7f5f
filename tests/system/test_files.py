"""Writes are atomic, and invalid or unexpected files are refused."""

import errno
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.system import files
from nanogpt.system.files import (
    compute_sha256,
    damaged_error,
    dump_json,
    parse_json,
    read_json,
    read_limited,
    remove_if_present,
    replace_directory,
    replace_path,
    require_inside,
    require_regular_file,
    resolve_interrupted_swap,
    sync_to_disk,
    write_atomically,
)
from tests.platforms import linux_only, needs_links, posix_only


def names() -> set[str]:
    return {file.name for file in Path().iterdir()}


def test_a_write_replaces_the_file_and_leaves_no_other() -> None:
    write_atomically(Path("file"), b"one")
    write_atomically(Path("file"), b"two\n")
    assert Path("file").read_bytes() == b"two\n"
    assert names() == {"file"}


def test_a_failed_write_keeps_the_old_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(Path("file"), b"one")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(Path("file"), b"two")
    assert Path("file").read_bytes() == b"one"
    assert names() == {"file"}


@needs_links
def test_a_write_replaces_a_link_and_does_not_follow_it() -> None:
    Path("secret").write_text("mine")
    for name in ("file", ".file.new"):
        Path(name).symlink_to("secret")
    write_atomically(Path("file"), b"two")
    assert Path("secret").read_text() == "mine"
    assert not Path("file").is_symlink()


def make(directory: str, content: str) -> Path:
    Path(directory).mkdir()
    Path(directory, "file").write_text(content)
    return Path(directory)


def cannot_swap(*_: Path) -> None:
    raise OSError(errno.ENOSYS, "no renameat2")


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_directory_is_replaced(can_swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_swap:
        monkeypatch.setattr(files, "_swap", cannot_swap)
    for content in ("one", "two", "three"):
        replace_directory(Path("best"), make("new", content))
        assert Path("best/file").read_text() == content
        assert names() == {"best"}


@linux_only
def test_linux_swaps_directories_in_one_step() -> None:
    one, other = make("one", "1"), make("other", "2")
    files._swap(one, other)
    assert (Path("one/file").read_text(), Path("other/file").read_text()) == ("2", "1")


def test_a_replacement_interrupted_between_two_steps_is_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_directory(Path("best"), make("new", "one"))
    replace, calls = os.replace, []

    def interrupted_replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_swap", cannot_swap)
        patched.setattr(os, "replace", interrupted_replace)
        with pytest.raises(KeyboardInterrupt):
            replace_directory(Path("best"), make("new", "two"))
    assert not Path("best").exists()
    assert (resolve_interrupted_swap(Path("best")) / "file").read_text() == "one"
    replace_directory(Path("best"), Path("new"))
    assert (resolve_interrupted_swap(Path("best")) / "file").read_text() == "two"
    assert names() == {"best"}


# Tests that imitate Windows and macOS.


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files behave as on Windows."""
    open_file = os.open

    def windows_open(path: Path, flags: int, **options: Any) -> int:
        if options:  # a call from shutil.rmtree() with dir_fd
            return open_file(path, flags, **options)
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        assert flags == os.O_RDWR, "FlushFileBuffers fails without write access"
        return open_file(path, flags)

    monkeypatch.setattr(files, "IS_WINDOWS", True)
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(files, "_swap", cannot_swap)
    monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.usefixtures("windows")
def test_windows_syncs_files_and_no_directories() -> None:
    write_atomically(Path("file"), b"one")
    sync_to_disk(Path("file"))
    sync_to_disk(Path())
    for content in ("one", "two"):
        replace_directory(Path("best"), make("new", content))
    assert Path("best/file").read_text() == "two"


def refuse_renames(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make os.replace() fail for some seconds, as on Windows while another process reads a file."""
    replace, until = os.replace, time.monotonic() + seconds

    def refused_replace(source: Path, target: Path) -> None:
        if time.monotonic() < until:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused_replace)


@pytest.mark.usefixtures("windows")
def test_windows_waits_for_another_process_to_close_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_directory(Path("best"), make("new", "one"))
    refuse_renames(monkeypatch, 0.2)
    replace_directory(Path("best"), make("new", "two"))
    assert Path("best/file").read_text() == "two"
    assert names() == {"best"}


@pytest.mark.usefixtures("windows")
def test_windows_waits_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(Path("file"), b"one")
    monkeypatch.setattr(files, "REPLACE_TIMEOUT", 0.2)
    refuse_renames(monkeypatch, 60)
    with pytest.raises(PermissionError):
        write_atomically(Path("file"), b"two")
    assert Path("file").read_bytes() == b"one"
    assert names() == {"file"}


@posix_only
def test_other_systems_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setattr(files, "REPLACE_TIMEOUT", 60)
    refuse_renames(monkeypatch, 120)
    start = time.monotonic()
    with pytest.raises(PermissionError):
        replace_path(Path("file"), Path("other"))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("works", [True, False])
def test_macos_syncs_the_cache_of_the_drive(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def full_sync(descriptor: int, command: int) -> None:
        calls.append(command)
        if not works:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    fcntl = ModuleType("fcntl")
    vars(fcntl).update(F_FULLFSYNC=51, fcntl=full_sync)
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    Path("file").touch()
    sync_to_disk(Path("file"))
    assert calls == ([51] if works else [51, "fsync"])


@posix_only
def test_a_drive_that_cannot_sync_directories_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    sync_to_disk(Path())
    Path("file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        sync_to_disk(Path("file"))


def test_two_spellings_of_a_path_mean_the_same_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS, a path and its resolved path may differ in upper and lower case."""
    file = make("run", "mine") / "file"
    Path("RUN").mkdir(exist_ok=True)
    real, same = os.path.realpath, os.path.samefile
    monkeypatch.setattr(
        os.path, "realpath", lambda p: real(p).replace("run", "RUN") if p == file else real(p)
    )
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "samefile", lambda a, b: same(str(a).lower(), str(b).lower()))
        assert require_inside(file.parent, file) == file
    if same("run", "RUN"):
        pytest.skip("this file system ignores case")
    with pytest.raises(UserError, match="leads out of run"):
        require_inside(file.parent, file)


# Links and named pipes.


@needs_links
def test_a_link_out_of_the_directory_is_refused() -> None:
    inside = make("run", "mine") / "file"
    Path("secret").write_text("other")
    (inside.parent / "out").symlink_to("../secret")
    (inside.parent / "again").symlink_to("file")
    assert require_inside(inside.parent, inside) == inside
    assert require_inside(inside.parent, inside.parent / "again").read_text() == "mine"
    with pytest.raises(UserError, match="run/out is a link that leads out of run: replace the"):
        require_inside(inside.parent, inside.parent / "out")
    with pytest.raises(UserError, match="leads out of run"):
        require_inside(inside.parent, inside.parent / "../secret")


@posix_only
def test_a_pipe_is_not_a_regular_file() -> None:
    os.mkfifo("pipe")  # a read would block forever
    with pytest.raises(UserError, match=r"pipe is missing or damaged \(not a regular file\)"):
        require_regular_file(Path(), Path("pipe"))
    Path("itself").symlink_to("itself")
    assert require_regular_file(Path(), Path("itself")) == Path("itself")  # open() fails later


@needs_links
def test_files_links_and_directories_are_removed() -> None:
    make("directory", "one")
    make("target", "one")
    Path("file").touch()
    Path("link").symlink_to("target")
    for name in ("directory", "file", "link", "nothing"):
        remove_if_present(Path(name))
    assert names() == {"target"}
    assert Path("target/file").exists()


def test_a_read_is_limited() -> None:
    Path("file").write_bytes(bytes(100))
    assert read_limited(Path("file"), 100) == bytes(100)
    with pytest.raises(UserError, match="larger than 99 bytes"):
        read_limited(Path("file"), 99)
    with pytest.raises(UserError, match="No such file"):
        read_limited(Path("nothing"), 99)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is not valid in JSON"),
        (b'{"a": -Infinity}', "-Infinity is not valid in JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "limit"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"a": 1} {', "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_json_is_read_strictly(raw: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        parse_json(raw, Path("file.json"))
    assert str(error.value).startswith("file.json is missing or damaged (")
    assert len(str(error.value)) < 300


def test_json_survives_a_round_trip() -> None:
    value = {"text": "é\n\0", "number": 0.1, "none": None, "list": [1, 2]}
    write_atomically(Path("file"), dump_json(value))
    assert read_json(Path("file")) == value == json.loads(Path("file").read_bytes())


def test_the_reason_of_damage_is_one_short_line() -> None:
    message = str(damaged_error(Path("file"), "two\nlines " + "x" * 1000))
    assert message.startswith("file is missing or damaged (two lines xxx")
    assert len(message) < 300


def test_the_checksum_is_that_of_sha256sum() -> None:
    Path("file").write_bytes(b"abc")
    assert compute_sha256(Path("file")).startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "文" * 85])
def test_a_file_can_have_the_longest_name_that_the_system_takes(tmp_path: Path, name: str) -> None:
    for content in (b"old", b"new"):
        write_atomically(tmp_path / name, content)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"new"]
