"""Datasets of the Hugging Face Hub; here, the library `datasets` reads them from a directory.

URLs and standard input are tested in test_corpora.py.
"""

import json
import sys
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora
from nanogpt.text.download import cache_directory, new_directory
from nanogpt.text.readers import no_progress
from tests.installing import assert_installs


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """The name of a dataset with two rows."""
    home = tmp_path / "texts"
    home.mkdir()
    rows = [{"text": "né\nx", "n": 1}, {"text": "终", "n": 2}]
    (home / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"hf:{home}"


@pytest.mark.slow
def test_a_dataset_is_the_text_of_its_rows(cache: Path, dataset: str) -> None:
    reports: list[tuple[str, int, int]] = []
    corpus = corpora.load_corpus(
        dataset, separator="|", progress=lambda *report: reports.append(report)
    )
    assert corpus.text() == "né\nx|终"
    assert corpus.name == dataset
    assert (f"downloading {dataset}", len("né\nx|终".encode()), 0) in reports
    assert [file.suffix for file in cache.iterdir()] == [".txt"]


@pytest.mark.slow
def test_a_dataset_is_downloaded_once(cache: Path, dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in the cache: download it with `nanogpt data hf:"):
        corpora.load_corpus(dataset, may_download=False)
    sha256 = corpora.load_corpus(dataset).facts.sha256
    assert corpora.load_corpus(dataset, separator="|").text() == "né\nx|终"  # cached separately
    (tmp_path / "texts" / "train.jsonl").unlink()
    assert corpora.load_corpus(dataset, expected_sha256=sha256).text() == "né\nx\n\n终"


def test_a_dataset_can_be_downloaded_again(cache: Path, dataset: str, tmp_path: Path) -> None:
    corpora.load_corpus(dataset)
    (tmp_path / "texts" / "train.jsonl").write_text('{"text": "new"}')
    corpora.refresh_text(dataset, "text", "\n\n", no_progress)
    assert corpora.load_corpus(dataset).text() == "new"


@pytest.mark.parametrize(
    ("config", "column", "message"),
    [
        ("", "body", "row 0: there is no column 'body'; choose another with --column .text."),
        ("", "n", "row 0: the column 'n' is not text; choose another with --column .text., or fix"),
        (
            ":nope",
            "text",
            r"cannot download hf:.* \(.*nope.*\): check the name; some datasets need a conf",
        ),
        ("/nope", "text", "cannot download hf:.*nope"),
    ],
)
def test_a_missing_dataset_or_column_is_refused(
    cache: Path, dataset: str, config: str, column: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        corpora.load_corpus(dataset + config, column=column)
    assert [*cache.iterdir()] == []


def test_without_the_library_the_error_says_what_to_install(
    cache: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "needs the library datasets: install it with `pip install"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match=error) as raised:
            corpora.load_corpus(dataset)
    assert_installs(str(raised.value), "datasets")
    assert corpora.load_corpus(dataset, separator="|").text() == "né\nx|终"


def test_a_dataset_with_two_configurations_needs_the_name_of_one(cache: Path) -> None:
    names, home = ("one", "two"), Path("configured").resolve()
    home.mkdir()
    for name in names:
        (home / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    lines = (f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in names)
    (home / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    with pytest.raises(UserError, match=r"; some datasets need a configuration, hf:NAME:CONFIG$"):
        corpora.load_corpus(f"hf:{home}")
    for name in names:
        assert corpora.load_corpus(f"hf:{home}:{name}").text() == name


def test_a_dataset_is_refused_without_a_writable_cache(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"cannot write hf:.* to the cache in .*file \(.*\): free some space"
    ):
        corpora.load_corpus(dataset)


def test_a_tilde_in_the_cache_path_means_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOGPT_CACHE", "~/texts")
    assert cache_directory() == Path.home() / "texts"


def test_a_directory_of_a_killed_process_is_removed(cache: Path) -> None:
    killed = cache / ".new-0123"
    killed.mkdir(parents=True)
    (killed / "new").write_text("a part of a text")
    with new_directory("one") as one:
        assert not killed.exists()
        (one / "new").touch()
        with new_directory("two") as two:
            assert two != one
        assert (one / "new").exists()  # this process still uses `one`
    assert not [*cache.iterdir()]
