"""Datasets of the Hugging Face Hub; here, the library `datasets` reads them from a directory."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora, hub
from nanogpt.text.readers import get_row_text, no_progress
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


def suffixes(cache: Path) -> list[str]:
    """Return the suffixes of the files in the cache, without lock files."""
    return sorted(file.suffix for file in cache.iterdir() if file.suffix != ".lock")


@pytest.mark.slow
def test_a_dataset_is_the_text_of_its_rows(cache: Path, dataset: str) -> None:
    reports: list[tuple[str, int, int]] = []
    corpus = corpora.load_corpus(
        dataset, separator="|", progress=lambda *report: reports.append(report)
    )
    assert corpus.text() == "né\nx|终"
    assert corpus.name == dataset
    assert (f"downloading {dataset}", len("né\nx|终".encode()), 0) in reports
    assert suffixes(cache) == [".txt"]


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


@pytest.fixture
def shards() -> tuple[str, str]:
    """A dataset in the layout of fineweb-edu, with several parquet files; its name and its text."""
    import pyarrow
    from pyarrow import parquet

    home = Path("shards").resolve()
    (home / "sample" / "10BT").mkdir(parents=True)
    rows = ["" if i in (0, 8, 59) else f"row {i} " + "é" * (i % 7) for i in range(60)]
    for i in range(3):
        file = home / "sample" / "10BT" / f"00{i}_00000.parquet"
        table = pyarrow.table({"text": rows[20 * i : 20 * i + 20], "score": [1.5] * 20})
        parquet.write_table(table, file, row_group_size=8)
    page = "---\nconfigs:\n- config_name: sample-10BT\n  data_files: sample/10BT/*\n---\n"
    (home / "README.md").write_text(page)
    return f"hf:{home}:sample-10BT", "\n\n".join(filter(None, rows))


@pytest.mark.parametrize("failing_row", [7, 25, 59])
def test_a_download_that_stopped_continues(
    cache: Path, shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch, failing_row: int
) -> None:
    """The first download stops at a row; the second one does not read the saved rows again."""
    name, text = shards
    monkeypatch.setattr(hub, "SAVED_BYTES", 50)
    read: list[str] = []

    def read_or_fail(row: dict[str, Any], column: str, row_name: str) -> str:
        read.append(row_name)
        if row_name.endswith(f" row {failing_row}") and read.count(row_name) == 1:
            raise OSError("the connection was lost")
        return get_row_text(row, column, row_name)

    monkeypatch.setattr("nanogpt.text.hub.get_row_text", read_or_fail)
    with pytest.raises(UserError, match="connection was lost"):
        corpora.load_corpus(name)
    assert suffixes(cache) == [".part", ".state"]
    part = next(cache.glob("*.part"))
    part.write_bytes(part.read_bytes() + b"more that was not saved")
    read.clear()
    read.append(f"{name}, row {failing_row}")
    assert corpora.load_corpus(name).text() == text
    assert suffixes(cache) == [".txt"]
    assert failing_row - 6 < 61 - len(read) <= failing_row


@pytest.mark.parametrize("refresh", [True, False])
def test_an_old_download_is_not_continued(
    cache: Path, shards: tuple[str, str], refresh: bool
) -> None:
    """It belongs to another version of the dataset, or the whole text is downloaded again."""
    name, text = shards
    corpora.load_corpus(name)
    cached = next(cache.glob("*.txt"))
    cached.with_suffix(".part").write_bytes(b"old text")
    version = [datasets.__version__, None if refresh else "another commit"]
    saved = {"bytes": 8, "rows": 1, "position": None, "version": version}
    cached.with_suffix(".state").write_text(json.dumps(saved))
    if refresh:
        corpora.refresh_text(name, "text", "\n\n", no_progress)
    else:
        cached.unlink()
    assert corpora.load_corpus(name).text() == text
    assert suffixes(cache) == [".txt"]


def stop_after_the_first_saved_position(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SAVED_BYTES", 50)

    def stop(_: str, size: int, __: int) -> None:
        if size > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpora.load_corpus(name, progress=stop)


class Hub:
    """Stands for the Hub, which the tests cannot reach; the files are in a folder."""

    def __init__(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits = ["a" * 40]
        self.answers = True
        load = datasets.load_dataset

        def load_commit(path: str, config: str | None, *, revision: str | None, **rest: Any) -> Any:
            if revision not in self.commits:
                raise ValueError(f"Revision {revision} does not exist")
            return load(folder, config, **rest)

        monkeypatch.setattr("datasets.load_dataset", load_commit)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.describe)

    def describe(self, path: str) -> Any:
        if not self.answers:
            raise OSError("429 Too Many Requests")
        return SimpleNamespace(sha=self.commits[-1])


def get_sizes(name: str) -> tuple[str, list[int]]:
    """Load a dataset; return its text, and the sizes of the progress reports of the download."""
    reports: list[tuple[str, int]] = []
    corpus = corpora.load_corpus(name, progress=lambda task, size, _: reports.append((task, size)))
    return corpus.text(), [size for task, size in reports if task == f"downloading {name}"]


@pytest.mark.parametrize("event", ["nothing", "new commit", "no answer"])
def test_a_download_from_the_hub_continues_with_its_commit(
    cache: Path, shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    folder, text = shards
    here = Hub(folder.split(":")[1], monkeypatch)
    name = "hf:me/texts:sample-10BT"
    stop_after_the_first_saved_position(name, monkeypatch)
    if event == "new commit":
        here.commits.append("b" * 40)
    here.answers = event != "no answer"
    found, sizes = get_sizes(name)
    assert found == text
    assert sizes[0] > 100


def test_a_commit_that_is_gone_needs_a_refresh(
    cache: Path, shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = shards
    here = Hub(folder.split(":")[1], monkeypatch)
    name = "hf:me/texts:sample-10BT"
    stop_after_the_first_saved_position(name, monkeypatch)
    here.commits = ["b" * 40]
    with pytest.raises(UserError, match=f"newest version, instead of {'a' * 40}, use --refresh$"):
        corpora.load_corpus(name)
    assert suffixes(cache) == [".part", ".state"]
    corpora.refresh_text(name, "text", "\n\n", no_progress)
    assert corpora.load_corpus(name).text() == text


def test_a_dataset_whose_commit_is_unknown_is_refused(
    cache: Path, shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, an interrupted download could continue with another commit."""
    here = Hub(shards[0].split(":")[1], monkeypatch)
    here.answers, here.commits = False, [None]  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"\(429 Too Many Requests\): check the network"):
        corpora.load_corpus("hf:me/texts:sample-10BT")


def test_the_download_of_a_folder_that_has_changed_starts_again(
    cache: Path, shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    name, text = shards
    stop_after_the_first_saved_position(name, monkeypatch)
    first = min(Path(name.split(":")[1]).rglob("*.parquet"))
    rows = parquet.read_table(first).column("text").to_pylist()
    table = {"text": [row.upper() for row in rows], "score": [1.5] * len(rows)}
    parquet.write_table(pyarrow.table(table), first)
    reports: list[str] = []
    corpus = corpora.load_corpus(name, progress=lambda task, *_: reports.append(task))
    changed = "\n\n".join(filter(None, rows))
    assert corpus.text() == text.replace(changed, changed.upper())
    assert "from the start, because the dataset or the library datasets has changed" in reports[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:300]),
        lambda file: file.write_bytes(b""),
        lambda file: file.with_suffix(".jsonl").write_text('{"body": "x"}'),
    ],
    ids=["truncated", "empty", "other columns"],
)
def test_an_error_of_the_library_is_printed_only_once(
    cache: Path,
    shards: tuple[str, str],
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(max(Path(shards[0].split(":")[1]).rglob("*.parquet")))
    with pytest.raises(UserError, match=r"^cannot download [^\n]*$"):
        corpora.load_corpus(shards[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["hf:", "hf: ", "hf::texts"])
def test_a_dataset_needs_a_name(cache: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} has no dataset: write hf:NAME or hf:NAME:CONFIG"):
        corpora.load_corpus(name)


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
    assert suffixes(cache) == []


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
        UserError, match=r"cannot write hf:.* to the cache in .*file \(.*\): set NANOGPT_CACHE"
    ):
        corpora.load_corpus(dataset)
