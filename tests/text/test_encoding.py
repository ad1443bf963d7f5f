"""The tokens of a text in pieces are those of the text; those of a large one are kept, whole."""

import re
import threading
import time
from collections.abc import Iterator
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
from nanogpt.text.bpe import AT_LINES, AT_SPACES, HubTokenizer
from nanogpt.text.corpora import SPLITS, Corpus, make_corpus
from nanogpt.text.encoding import cut, encode, get_tokenizer
from nanogpt.text.readers import quiet
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests.texts import LANGUAGES, texts

TEXT = "\n\n".join(LANGUAGES) + "".join(f" and word {i} is a word," for i in range(40))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text has many."""
    monkeypatch.setattr(encoding, "CHUNK", 40)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, small_chunks: None, cache: Path) -> Corpus:
    """A text in odd pieces that counts as large."""
    monkeypatch.setattr(encoding, "LARGE_TEXT", 100)
    cuts = [*range(0, len(TEXT), 33), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in pairwise(cuts)]
    return replace(make_corpus(TEXT), pieces=lambda: iter(pieces))


def each(bpe: HubTokenizer) -> list[Tokenizer]:
    return [CharTokenizer(TEXT), ByteTokenizer(), bpe]


@given(texts, st.lists(st.integers(0, 300)), st.sampled_from(["", AT_SPACES, AT_LINES]))
def test_cuts_depend_on_the_text_alone(text: str, places: list[int], boundary: str) -> None:
    text *= 5
    places = sorted({0, *(place for place in places if place < len(text)), len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    chunks = [*cut(pieces, boundary, 40)]
    assert chunks == [*cut([text], boundary, 40)]
    assert "".join(chunks) == text
    at = 0
    for chunk in chunks[:-1]:
        first = re.compile(boundary).search(text, at + 40)
        assert len(chunk) == min(160, first.start() - at if first else 160)
        at += len(chunk)


@pytest.mark.parametrize("part", ["train", "val", None])
def test_tokens_of_a_text_in_pieces_are_those_of_the_text(
    bpe: HubTokenizer, large: Corpus, part: corpora.SplitName | None, monkeypatch: Any
) -> None:
    """In memory and from the cache, the first time and the second."""
    text = {"train": TEXT[: int(0.9 * len(TEXT))], "val": TEXT[int(0.9 * len(TEXT)) :], None: TEXT}
    for tokenizer in each(bpe):
        mapped, again = encode(large, tokenizer, part), encode(large, tokenizer, part)
        with monkeypatch.context() as context:
            context.setattr(encoding, "LARGE_TEXT", 1 << 20)
            in_memory = encode(large, tokenizer, part)
        for found in (mapped, again, in_memory):
            assert found.ids.dtype == np.uint16
            assert found.ids.tolist() == tokenizer.encode(text[part])
            assert found.bytes == len(text[part].encode())
        assert isinstance(mapped.ids, np.memmap)


def test_a_text_that_may_be_cut_nowhere_is_cut_all_the_same(
    large: Corpus, bpe: HubTokenizer
) -> None:
    """After four chunks; each is encoded by itself."""
    text = "acgt" * 100
    corpus = replace(make_corpus(text), pieces=lambda: iter([text[:7], text[7:399], text[399:]]))
    expected = bpe.encode(text[:160]) + bpe.encode(text[160:320]) + bpe.encode(text[320:])
    assert encode(corpus, bpe).ids.tolist() == expected


def test_an_empty_part_of_a_large_text_is_no_error_here(large: Corpus) -> None:
    for _ in range(2):
        assert len(encode(large, ByteTokenizer(), "train", 1 - 1e-9).ids) == 0


def test_large_ids_have_32_bits(bpe: HubTokenizer) -> None:
    class Large(ByteTokenizer):
        vocab_size = 100_000

        def encode_array(self, text: str) -> Any:
            return super().encode_array(text).astype(np.uint32) + 70_000

    found = encode(make_corpus("abc"), Large())
    assert found.ids.dtype == np.uint32
    assert found.ids.tolist() == [70_097, 70_098, 70_099]


class Once(ByteTokenizer):
    """Counts what it is asked; the chunk of a number is its last."""

    def __init__(self, last: int = 10**9) -> None:
        self.asked, self.last = 0, last

    def encode_array(self, text: str) -> Any:
        self.asked += 1
        if self.asked > self.last:
            raise KeyboardInterrupt
        return super().encode_array(text)


def test_tokens_are_kept_by_text_tokenizer_and_part(large: Corpus, cache: Path) -> None:
    tokenizer = Once()
    encode(large, tokenizer, "train")
    asked = tokenizer.asked
    assert asked > 10
    for corpus in (large, replace(large, name="of another name")):
        encode(corpus, tokenizer, "train")
        assert tokenizer.asked == asked
    encode(large, tokenizer, "val")
    encode(large, tokenizer, "train", 0.5)
    encode(replace(make_corpus(TEXT + "x"), name=large.name), tokenizer, "train")
    assert len([*cache.glob("tokens-*.bin")]) == 4


def test_what_was_interrupted_begins_anew(large: Corpus, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(large, Once(last=7))
    assert not [*cache.glob("tokens-*.bin"), *cache.glob("tokens-*.json"), *cache.glob("*.new")]
    (new,) = (file.with_suffix(".new") for file in cache.glob("tokens-*.lock"))
    new.write_bytes(b"of a process that was killed")
    assert encode(large, Once()).ids.tolist() == [*TEXT.encode()]


def test_a_file_that_is_not_whole_is_made_anew(large: Corpus, cache: Path) -> None:
    encode(large, Once())
    (array,), (about,) = cache.glob("tokens-*.bin"), cache.glob("tokens-*.json")
    said = about.read_text()
    for damage in (
        lambda: array.write_bytes(array.read_bytes()[:-2]),
        array.unlink,
        about.unlink,
        lambda: about.write_text(said.replace("tokens", "token")),
        lambda: about.write_text(said[:9]),
    ):
        damage()
        tokenizer = Once()
        assert encode(large, tokenizer).ids.tolist() == [*TEXT.encode()]
        assert tokenizer.asked


def test_who_comes_while_it_is_written_waits(large: Corpus) -> None:
    class Slow(Once):
        def encode_array(self, text: str) -> Any:
            time.sleep(0.001)
            return super().encode_array(text)

    tokenizer, found, heard = Slow(), [], []

    def one() -> None:
        found.append(encode(large, tokenizer, progress=lambda what, *_: heard.append(what)))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokens.ids.tolist() for tokens in found] == [[*TEXT.encode()]] * 3
    assert tokenizer.asked == len([*cut([TEXT], "", 40)])
    assert heard.count("waiting for another process, which encodes the same") == 2


def test_a_cache_that_cannot_be_written_is_named(
    large: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep the tokens of a large text in .*file \(.*N"):
        encode(large, ByteTokenizer())
    with pytest.raises(UserError, match="make room, or name another directory with NANOGPT_CACHE"):
        get_tokenizer("bpe:300", large, 0.1, quiet)


def test_it_is_heard_how_far_it_is(large: Corpus) -> None:
    heard: list[tuple[str, int, int]] = []
    encode(large, ByteTokenizer(), "train", progress=lambda *now: heard.append(now))
    assert {what for what, _, _ in heard} == {"encoding train of the text"}
    done = [done for _, done, _ in heard]
    assert done == sorted(done)
    assert done[-1] == len(TEXT[: int(0.9 * len(TEXT))].encode())


@pytest.mark.parametrize("kind", ["char", "bpe:270"])
def test_a_tokenizer_learned_from_a_large_text_is_kept(
    kind: str, large: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get_tokenizer(kind, large, 0.1, quiet)

    def never() -> Iterator[str]:
        raise AssertionError

    again = get_tokenizer(kind, replace(large, pieces=never), 0.1, quiet)
    assert again.to_json() == first.to_json()
    (kept,) = cache.glob("tokenizer-*.json")
    kept.write_bytes(kept.read_bytes()[:-9])  # damaged
    assert get_tokenizer(kind, large, 0.1, quiet).to_json() == first.to_json()
    monkeypatch.setattr(encoding, "LARGE_TEXT", 1 << 20)
    assert get_tokenizer(kind, make_corpus(TEXT), 0.1, quiet).to_json() == first.to_json()


def test_processes_that_begin_together_learn_one_tokenizer(large: Corpus) -> None:
    learned: list[str] = []
    problems: list[Exception] = []

    def pieces() -> Iterator[str]:
        learned.append("")
        time.sleep(0.01)
        return large.pieces()

    def one() -> None:
        try:
            get_tokenizer("char", replace(large, pieces=pieces), 0.1, quiet)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(learned) <= 2  # once for the alphabet, once for what bpe would learn from


def test_what_byte_pairs_learn_from_depends_on_the_part_to_measure_with(large: Corpus) -> None:
    text = "zz " * 60 + "yy " * 150
    corpus = replace(make_corpus(text), pieces=lambda: iter([text]))
    for part, pair in ((0.7, b"zz"), (0.01, b"yy")):
        assert get_tokenizer("bpe:257", corpus, part, quiet).piece(256) == pair


def test_no_more_chunks_are_in_memory_than_are_worked_on(bpe: HubTokenizer) -> None:
    taken = 0

    def chunks() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 1000):
            yield f"chunk {taken}"

    encoded = encoding._encoded(chunks(), bpe, np.dtype("<u2"))
    for number in range(1, 10):
        next(encoded)
        assert taken <= number + 2 * count_cores() + 1


def test_byte_pairs_are_learned_from_a_sample_of_the_training_part(
    large: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SAMPLE", 4)
    chunks = [*cut([TEXT[: int(0.9 * len(TEXT))]], AT_SPACES, 40)]
    sample = [*encoding._sample(large, 0.1)]
    assert [chunks.index(chunk) for chunk in sample] == [0, 7, 13, 19]
    monkeypatch.setattr(encoding, "SAMPLE", 1000)
    assert [*encoding._sample(large, 0.1)] == chunks


def test_a_text_that_changed_meanwhile_is_not_kept(large: Corpus, cache: Path) -> None:
    def check() -> None:
        raise UserError("changed")

    changed = replace(large, check=check)
    for part in SPLITS:
        with pytest.raises(UserError, match="changed"):
            encode(changed, ByteTokenizer(), part)
    with pytest.raises(UserError, match="changed"):
        get_tokenizer("char", changed, 0.1, quiet)
    assert {file.suffix for file in cache.iterdir()} == {".lock"}


@pytest.fixture
def folder(cache: Path, bpe: HubTokenizer) -> Path:
    """Tokens as nanoGPT writes them: numpy's uint16, one file for each part."""
    home = Path("tokens")
    home.mkdir()
    for name, text in (("train", TEXT), ("val", "生存 and no more")):
        np.array(bpe.encode(text), dtype=np.uint16).tofile(home / f"{name}.bin")
    (home / "meta.pkl").write_bytes(b"never read")
    return home


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_tokens_that_nanogpt_wrote(
    folder: Path, bpe: HubTokenizer, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "LARGE_TEXT", limit)
    for _ in range(2):
        corpus = corpora.load_corpus(str(folder))
        train, val = encode(corpus, bpe, "train"), encode(corpus, bpe, "val")
        assert train.ids.tolist() == bpe.encode(TEXT)
        assert val.ids.tolist() == bpe.encode("生存 and no more")
        assert (train.bytes, val.bytes) == (len(TEXT.encode()), len("生存 and no more".encode()))
    first = corpus.facts.sha256
    (folder / "val.bin").write_bytes(b"a\0b\0")
    assert corpora.load_corpus(str(folder)).facts.sha256 != first


def test_tokens_need_their_tokenizer(folder: Path, bpe: HubTokenizer) -> None:
    corpus = corpora.load_corpus(str(folder))
    for kind in ("char", "bpe:300"):
        with pytest.raises(UserError, match=r"holds tokens, train\.bin and val\.bin, and not"):
            get_tokenizer(kind, corpus, 0.1, quiet)
    with pytest.raises(
        UserError, match=r"train\.bin has the token \d+, and the tokenizer only 3: n"
    ):
        encode(corpus, CharTokenizer("abc"), "train")
    np.array([1, 3], dtype=np.uint16).tofile(folder / "val.bin")  # the highest of three is 2
    with pytest.raises(UserError, match=r"val\.bin has the token 3, and the tokenizer only 3"):
        encode(corpora.load_corpus(str(folder)), CharTokenizer("abc"), "val")
    with pytest.raises(
        UserError, match="holds two parts: take one with --split train or --split v"
    ):
        encode(corpus, bpe)
    for raw in (b"abc", b""):
        (folder / "val.bin").write_bytes(raw)
        with pytest.raises(UserError, match=r"val\.bin is not made of tokens of 16 bits: write it"):
            encode(corpora.load_corpus(str(folder)), bpe, "val")
