"""Files are whole or absent, and what strangers hand over is read with care."""

import errno
import json
import os
from pathlib import Path

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
    require_inside,
    require_regular_file,
    resolve_interrupted_swap,
    write_atomically,
)


def names() -> set[str]:
    return {file.name for file in Path().iterdir()}


def test_a_file_is_replaced_whole() -> None:
    write_atomically(Path("file"), b"one")
    write_atomically(Path("file"), b"two")
    assert Path("file").read_bytes() == b"two"
    assert names() == {"file"}


def test_what_cannot_be_written_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(Path("file"), b"one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(Path("file"), b"two")
    assert Path("file").read_bytes() == b"one"
    assert names() == {"file"}


def test_a_link_is_replaced_and_never_followed() -> None:
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


@pytest.mark.parametrize("system", ["swaps", "cannot swap"])
def test_a_directory_is_replaced_whole(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "cannot swap":
        monkeypatch.setattr(files, "_exchange", lambda *_: os.rename("nowhere", "nothing"))
    for content in ("one", "two", "three"):
        replace_directory(Path("best"), make("new", content))
        assert Path("best/file").read_text() == content
        assert names() == {"best"}


def test_on_linux_there_is_no_instant_without_it() -> None:
    one, other = make("one", "1"), make("other", "2")
    files._exchange(one, other)
    assert (Path("one/file").read_text(), Path("other/file").read_text()) == ("2", "1")


def test_a_replacement_cut_short_between_two_steps_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_directory(Path("best"), make("new", "one"))
    replace, calls = os.replace, []

    def cut(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as cut_short:
        cut_short.setattr(files, "_exchange", lambda *_: os.rename("nowhere", "nothing"))
        cut_short.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            replace_directory(Path("best"), make("new", "two"))
    assert not Path("best").exists()
    assert (resolve_interrupted_swap(Path("best")) / "file").read_text() == "one"
    replace_directory(Path("best"), Path("new"))
    assert (resolve_interrupted_swap(Path("best")) / "file").read_text() == "two"
    assert names() == {"best"}


def test_a_link_out_of_the_directory_is_refused() -> None:
    inside = make("run", "mine") / "file"
    Path("secret").write_text("other")
    (inside.parent / "out").symlink_to("../secret")
    (inside.parent / "again").symlink_to("file")
    assert require_inside(inside.parent, inside) == inside
    assert require_inside(inside.parent, inside.parent / "again").read_text() == "mine"
    with pytest.raises(UserError, match="run/out is a link that leads out of run: put the file"):
        require_inside(inside.parent, inside.parent / "out")
    with pytest.raises(UserError, match="leads out of run"):
        require_inside(inside.parent, inside.parent / "../secret")


def test_what_is_no_regular_file_is_refused() -> None:
    os.mkfifo("pipe")  # reading it would wait for ever
    with pytest.raises(UserError, match=r"pipe is missing or damaged \(not a regular file\)"):
        require_regular_file(Path(), Path("pipe"))
    Path("itself").symlink_to("itself")
    assert require_regular_file(Path(), Path("itself")) == Path("itself")  # open() reports it


def test_whatever_it_is_can_be_removed() -> None:
    make("directory", "one")
    make("kept", "one")
    Path("file").touch()
    Path("link").symlink_to("kept")
    for name in ("directory", "file", "link", "nothing"):
        remove_if_present(Path(name))
    assert names() == {"kept"}
    assert Path("kept/file").exists()


def test_no_more_is_read_than_allowed() -> None:
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
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
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


def test_json_goes_there_and_back() -> None:
    value = {"text": "é\n\0", "number": 0.1, "none": None, "list": [1, 2]}
    write_atomically(Path("file"), dump_json(value))
    assert read_json(Path("file")) == value == json.loads(Path("file").read_bytes())


def test_a_reason_is_one_short_line() -> None:
    message = str(damaged_error(Path("file"), "two\nlines " + "x" * 1000))
    assert message.startswith("file is missing or damaged (two lines xxx")
    assert len(message) < 300


def test_the_checksum_is_what_sha256sum_says() -> None:
    Path("file").write_bytes(b"abc")
    assert compute_sha256(Path("file")).startswith("ba7816bf8f01cfea414140de5dae2223")
