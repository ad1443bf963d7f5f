"""Datasets of the Hub, from a folder as the library reads them; and a cache that cannot be written.

Addresses and standard input: test_corpora.py.
"""

import json
import sys
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """The name of one with two texts."""
    home = tmp_path / "texts"
    home.mkdir()
    rows = [{"text": "né\nx", "n": 1}, {"text": "终", "n": 2}]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"hf:{home}"


def test_a_dataset_is_its_texts(cache: Path, dataset: str) -> None:
    heard: list[tuple[str, int, int]] = []
    corpus = corpora.load_corpus(dataset, separator="|", progress=lambda *now: heard.append(now))
    assert corpus.text() == "né\nx|终"
    assert corpus.name == dataset
    assert (f"getting {dataset}", len("né\nx|终".encode()), 0) in heard
    assert [file.suffix for file in cache.iterdir()] == [".txt"]


def test_a_dataset_is_fetched_once(cache: Path, dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in the cache: get it with nanogpt data hf:"):
        corpora.load_corpus(dataset, "0" * 64)  # for a run, which may be a stranger's
    known = corpora.load_corpus(dataset).facts.sha256
    assert corpora.load_corpus(dataset, separator="|").text() == "né\nx|终"  # is another text
    (tmp_path / "texts" / "train.jsonl").unlink()
    assert corpora.load_corpus(dataset, known).text() == "né\nx\n\n终"


@pytest.mark.parametrize(
    ("part", "column", "says"),
    [
        ("", "body", "row 0, has no column body: name one with --column; it has text, n"),
        ("", "n", "row 0, has no text in n: name another with --column"),
        (
            ":nope",
            "text",
            r"cannot get hf:.* \(.*nope.*\): is the name right\? One may need a part",
        ),
        ("/nope", "text", "cannot get hf:.*nope"),
    ],
)
def test_a_dataset_without_the_text(
    cache: Path, dataset: str, part: str, column: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        corpora.load_corpus(dataset + part, column=column)
    assert [*cache.iterdir()] == []


def test_without_the_library_the_error_says_what_to_install(
    cache: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library datasets: install it with `pip install"):
        corpora.load_corpus(dataset)


def test_a_cache_that_cannot_be_written(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"cannot keep hf:.* in .*file \(.*\): make room, or name an"
    ):
        corpora.load_corpus(dataset)
