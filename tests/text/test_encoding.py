"""Encoding in chunks gives the tokens of the whole text; tokens of large texts are cached."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.system.cores import count_cores
from nanogpt.text import corpora, encoding
from nanogpt.text.bpe import LINE_BOUNDARY, SPACE_BOUNDARY, HubTokenizer
from nanogpt.text.corpora import SPLITS, Corpus, make_corpus
from nanogpt.text.encoding import encode_corpus, get_tokenizer, rechunk
from nanogpt.text.readers import no_progress
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests.families import FAMILIES, word_level
from tests.texts import LANGUAGES, texts

TEXT = "\n\n".join(LANGUAGES) + "".join(f" and word {i} is a word," for i in range(40))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks small, so that a short text has many chunks."""
    monkeypatch.setattr(encoding, "CHUNK_SIZE", 40)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, small_chunks: None, cache: Path) -> Corpus:
    """A text that is treated as large; its chunks have 33 characters."""
    monkeypatch.setattr(encoding, "LARGE_TEXT", 100)
    chunks = [TEXT[start : start + 33] for start in range(0, len(TEXT), 33)]
    return replace(make_corpus(TEXT), chunks=lambda: iter(chunks))


def make_tokenizers(bpe: HubTokenizer) -> list[Tokenizer]:
    """Make one tokenizer of each kind."""
    return [CharTokenizer(TEXT), ByteTokenizer(), bpe]


@given(texts, st.lists(st.integers(0, 300)), st.sampled_from(["", SPACE_BOUNDARY, LINE_BOUNDARY]))
def test_rechunk_depends_on_the_text_only(text: str, cuts: list[int], boundary: str) -> None:
    text *= 5
    cuts = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    chunks = [*rechunk([text[start:end] for start, end in pairwise(cuts)], boundary, 40)]
    assert chunks == [*rechunk([text], boundary, 40)]
    assert "".join(chunks) == text
    start = 0
    for chunk in chunks[:-1]:
        match = re.compile(boundary).search(text, start + 40)
        assert len(chunk) == min(160, match.start() - start if match else 160)
        start += len(chunk)


@pytest.mark.parametrize("split", ["train", "val", None])
def test_encoding_in_chunks_gives_the_tokens_of_the_whole_text(
    bpe: HubTokenizer, large: Corpus, split: corpora.SplitName | None, monkeypatch: Any
) -> None:
    """Tokens in memory equal the tokens that the first call caches and the second call reads."""
    text = {"train": TEXT[: int(0.9 * len(TEXT))], "val": TEXT[int(0.9 * len(TEXT)) :], None: TEXT}
    for tokenizer in make_tokenizers(bpe):
        mapped, again = (encode_corpus(large, tokenizer, split) for _ in range(2))
        with monkeypatch.context() as context:
            context.setattr(encoding, "LARGE_TEXT", 1 << 20)
            in_memory = encode_corpus(large, tokenizer, split)
        for tokens in (mapped, again, in_memory):
            assert tokens.ids.dtype == np.uint16
            assert tokens.ids.tolist() == tokenizer.encode(text[split])
            assert tokens.bytes == len(text[split].encode())
        assert isinstance(mapped.ids, np.memmap)


def test_a_text_without_boundaries_is_split_at_four_times_the_chunk_size(
    large: Corpus, bpe: HubTokenizer
) -> None:
    text = "acgt" * 100
    corpus = replace(make_corpus(text), chunks=lambda: iter([text[:7], text[7:399], text[399:]]))
    expected = bpe.encode(text[:160]) + bpe.encode(text[160:320]) + bpe.encode(text[320:])
    assert encode_corpus(corpus, bpe).ids.tolist() == expected


def test_an_empty_split_of_a_large_text_has_no_tokens(large: Corpus) -> None:
    for _ in range(2):
        assert len(encode_corpus(large, ByteTokenizer(), "train", 1 - 1e-9).ids) == 0


def test_a_large_vocabulary_has_32_bit_ids() -> None:
    class Large(ByteTokenizer):
        vocab_size = 100_000

        def encode_array(self, text: str) -> Any:
            return super().encode_array(text).astype(np.uint32) + 70_000

    tokens = encode_corpus(make_corpus("abc"), Large())
    assert tokens.ids.dtype == np.uint32
    assert tokens.ids.tolist() == [70_097, 70_098, 70_099]


class CountingTokenizer(ByteTokenizer):
    """Counts the calls of encode_array(), and raises KeyboardInterrupt after `max_calls` calls."""

    def __init__(self, max_calls: int = 10**9) -> None:
        self.calls, self.max_calls = 0, max_calls

    def encode_array(self, text: str) -> Any:
        self.calls += 1
        if self.calls > self.max_calls:
            raise KeyboardInterrupt
        return super().encode_array(text)


def test_the_cache_depends_on_text_tokenizer_and_split(large: Corpus, cache: Path) -> None:
    tokenizer = CountingTokenizer()
    encode_corpus(large, tokenizer, "train")
    calls = tokenizer.calls
    assert calls > 10
    for corpus in (large, replace(large, name="another name")):
        encode_corpus(corpus, tokenizer, "train")
        assert tokenizer.calls == calls
    encode_corpus(large, tokenizer, "val")
    encode_corpus(large, tokenizer, "train", 0.5)
    encode_corpus(replace(make_corpus(TEXT + "x"), name=large.name), tokenizer, "train")
    assert len([*cache.glob("tokens-*.bin")]) == 4


def test_an_interrupted_encoding_starts_again(large: Corpus, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(large, CountingTokenizer(max_calls=7))
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    assert encode_corpus(large, CountingTokenizer()).ids.tolist() == [*TEXT.encode()]


def test_a_damaged_file_of_tokens_is_written_again(large: Corpus, cache: Path) -> None:
    encode_corpus(large, CountingTokenizer())
    (file,), (info_file,) = cache.glob("tokens-*.bin"), cache.glob("tokens-*.json")
    info = info_file.read_text()
    for damage in (
        lambda: file.write_bytes(file.read_bytes()[:-2]),
        file.unlink,
        info_file.unlink,
        lambda: info_file.write_text(info.replace("tokens", "token")),
        lambda: info_file.write_text(info[:9]),
    ):
        damage()
        tokenizer = CountingTokenizer()
        assert encode_corpus(large, tokenizer).ids.tolist() == [*TEXT.encode()]
        assert tokenizer.calls


class TaskRecorder:
    """A progress function that records tasks, and detects when all other threads are waiting."""

    def __init__(self, other_threads: int) -> None:
        self.tasks: list[str] = []
        self.other_threads, self.all_waiting = other_threads, threading.Event()

    def __call__(self, task: str, done: int, total: int) -> None:
        self.tasks.append(task)
        if sum(task.startswith("waiting") for task in self.tasks) == self.other_threads:
            self.all_waiting.set()


def run_together(function: Callable[[], None], count: int) -> None:
    """Call a function in several threads at the same time."""
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_second_process_waits_and_says_why(large: Corpus) -> None:
    recorder = TaskRecorder(other_threads=2)

    class SlowTokenizer(CountingTokenizer):
        def encode_array(self, text: str) -> Any:
            assert recorder.all_waiting.wait(30)
            return super().encode_array(text)

    tokenizer, results = SlowTokenizer(), []

    def encode() -> None:
        results.append(encode_corpus(large, tokenizer, progress=recorder))

    run_together(encode, 3)
    assert [tokens.ids.tolist() for tokens in results] == [[*TEXT.encode()]] * 3
    assert tokenizer.calls == len([*rechunk([TEXT], "", 40)])
    waiting = "waiting for another process that is encoding the same text"
    assert recorder.tasks.count(waiting) == 2


def test_the_error_of_an_unwritable_cache_says_what_was_written(
    large: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the tokens of the text to the cache in .*f"):
        encode_corpus(large, ByteTokenizer())
    with pytest.raises(
        UserError, match=r"cannot write the tokenizer to the cache in .*file .*: set NANO"
    ):
        get_tokenizer("bpe:300", large, 0.1, no_progress)


def test_progress_is_reported_in_bytes(large: Corpus) -> None:
    reports: list[tuple[str, int, int]] = []
    encode_corpus(large, ByteTokenizer(), "train", progress=lambda *report: reports.append(report))
    assert {task for task, _, _ in reports} == {"encoding the train split"}
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert done[-1] == len(TEXT[: int(0.9 * len(TEXT))].encode())


@pytest.mark.parametrize("kind", ["char", "bpe:270"])
def test_a_tokenizer_trained_on_a_large_text_is_cached(
    kind: str, large: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get_tokenizer(kind, large, 0.1, no_progress)

    def fail() -> Iterator[str]:
        raise AssertionError

    again = get_tokenizer(kind, replace(large, chunks=fail), 0.1, no_progress)
    assert again.to_json() == first.to_json()
    (cached,) = cache.glob("tokenizer-*.json")
    cached.write_text(cached.read_text()[:-9])  # damaged
    assert get_tokenizer(kind, large, 0.1, no_progress).to_json() == first.to_json()
    monkeypatch.setattr(encoding, "LARGE_TEXT", 1 << 20)
    assert get_tokenizer(kind, make_corpus(TEXT), 0.1, no_progress).to_json() == first.to_json()


def test_processes_that_start_together_train_one_tokenizer(large: Corpus) -> None:
    recorder = TaskRecorder(other_threads=4)
    reads: list[str] = []
    errors: list[Exception] = []

    def chunks() -> Iterator[str]:
        reads.append("")
        assert recorder.all_waiting.wait(30)
        return large.chunks()

    def train() -> None:
        try:
            get_tokenizer("char", replace(large, chunks=chunks), 0.1, recorder)
        except Exception as error:
            errors.append(error)

    run_together(train, 5)
    assert errors == []
    assert len(reads) <= 2  # only one thread reads the text, at most twice
    waiting = "waiting for another process that is training the same tokenizer"
    assert sorted(recorder.tasks) == ["training a tokenizer", *[waiting] * 4]


def test_bpe_is_trained_on_the_training_split(large: Corpus) -> None:
    text = "zz " * 60 + "yy " * 150
    corpus = replace(make_corpus(text), chunks=lambda: iter([text]))
    for val_fraction, pair in ((0.7, b"zz"), (0.01, b"yy")):
        tokenizer = get_tokenizer("bpe:257", corpus, val_fraction, no_progress)
        assert tokenizer.token_bytes(256) == pair


def test_few_chunks_are_in_memory_at_a_time(bpe: HubTokenizer) -> None:
    produced = 0

    def chunks() -> Iterator[str]:
        nonlocal produced
        for produced in range(1, 1000):
            yield f"chunk {produced}"

    encoded = encoding._encode_chunks(chunks(), bpe, np.dtype("<u2"))
    for number in range(1, 10):
        next(encoded)
        assert produced <= number + 2 * count_cores() + 1


def test_the_sample_is_evenly_spaced_in_the_training_split(
    large: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SAMPLE_CHUNKS", 4)
    chunks = [*rechunk([TEXT[: int(0.9 * len(TEXT))]], SPACE_BOUNDARY, 40)]
    sample = [*encoding._sample_training_split(large, 0.1)]
    assert [chunks.index(chunk) for chunk in sample] == [0, 7, 13, 19]
    monkeypatch.setattr(encoding, "SAMPLE_CHUNKS", 1000)
    assert [*encoding._sample_training_split(large, 0.1)] == chunks


def test_a_text_that_changes_is_not_cached(large: Corpus, cache: Path) -> None:
    def check() -> None:
        raise UserError("changed")

    changed = replace(large, check_unchanged=check)
    for split in SPLITS:
        with pytest.raises(UserError, match="changed"):
            encode_corpus(changed, ByteTokenizer(), split)
    with pytest.raises(UserError, match="changed"):
        get_tokenizer("char", changed, 0.1, no_progress)
    assert {file.suffix for file in cache.iterdir()} == {".lock"}


@pytest.fixture
def folder(cache: Path, bpe: HubTokenizer) -> Path:
    """A directory of tokens in nanoGPT's format: 16-bit integers, one file for each split."""
    home = Path("tokens")
    home.mkdir()
    for name, text in (("train", TEXT), ("val", "生存 and no more")):
        np.array(bpe.encode(text), dtype=np.uint16).tofile(home / f"{name}.bin")
    (home / "meta.pkl").write_bytes(b"not read")
    return home


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_tokens_in_the_format_of_karpathys_nanogpt_are_used(
    folder: Path, bpe: HubTokenizer, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "LARGE_TEXT", limit)
    for _ in range(2):
        corpus = corpora.load_corpus(str(folder))
        train, val = encode_corpus(corpus, bpe, "train"), encode_corpus(corpus, bpe, "val")
        assert train.ids.tolist() == bpe.encode(TEXT)
        assert val.ids.tolist() == bpe.encode("生存 and no more")
        assert (train.bytes, val.bytes) == (len(TEXT.encode()), len("生存 and no more".encode()))
    first = corpus.facts.sha256
    (folder / "val.bin").write_bytes(b"a\0b\0")
    assert corpora.load_corpus(str(folder)).facts.sha256 != first


def test_files_of_tokens_without_their_tokenizer_are_refused(
    folder: Path, bpe: HubTokenizer
) -> None:
    corpus = corpora.load_corpus(str(folder))
    for kind in ("char", "bpe:300"):
        with pytest.raises(
            UserError, match=r"contains tokens \(train\.bin and val\.bin\), not text"
        ):
            get_tokenizer(kind, corpus, 0.1, no_progress)
    with pytest.raises(
        UserError, match=r"train\.bin has the token \d+, but the tokenizer has only 3 tok"
    ):
        encode_corpus(corpus, CharTokenizer("abc"), "train")
    np.array([1, 3], dtype=np.uint16).tofile(folder / "val.bin")  # the tokenizer has ids 0 to 2
    with pytest.raises(UserError, match=r"val\.bin has the token 3, but the tokenizer has only 3"):
        encode_corpus(corpora.load_corpus(str(folder)), CharTokenizer("abc"), "val")
    with pytest.raises(UserError, match="has two splits: choose train or val"):
        encode_corpus(corpus, bpe)
    for raw in (b"abc", b""):
        (folder / "val.bin").write_bytes(raw)
        with pytest.raises(UserError, match=r"val\.bin does not contain 16-bit tokens: create it"):
            encode_corpus(corpora.load_corpus(str(folder)), bpe, "val")


@pytest.mark.parametrize("make", FAMILIES)
def test_a_token_folder_has_the_bytes_of_its_decoded_text(
    make: Callable[[], Any], tmp_path: Path, small_chunks: None
) -> None:
    """In many families of tokenizers, the text of a token depends on the tokens around it."""
    tokenizer = HubTokenizer(json.loads(make().to_str()))
    ids = tokenizer.encode("to be or not to be, the then. " * 20)
    for split in SPLITS:
        np.array(ids, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    tokens = encode_corpus(corpora.load_corpus(str(tmp_path)), tokenizer, "val")
    assert tokens.ids.tolist() == ids
    assert tokens.bytes == len(tokenizer.decode(ids).encode())
    assert bool(tokens.lost_bytes) == (tokenizer.unknown_id in ids)


@pytest.mark.usefixtures("small_chunks")
def test_lost_bytes_are_counted_in_every_chunk_and_cached(large: Corpus) -> None:
    tokenizer = HubTokenizer(json.loads(word_level().to_str()))
    tokens = encode_corpus(large, tokenizer)
    assert tokens.bytes == len(TEXT.encode())
    # Most words are unknown, so they are lost; single spaces between words are not lost.
    assert 0.6 * tokens.bytes < tokens.lost_bytes < tokens.bytes
    assert encode_corpus(large, tokenizer).lost_bytes == tokens.lost_bytes
