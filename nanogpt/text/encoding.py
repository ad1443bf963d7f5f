"""The tokens of a corpus: encoded piece by piece, in parallel, and kept where they are many.

Those of a large text are written into a file in the cache, under a key of the text, the tokenizer
and the part of the text, and mapped from there: neither to make them nor to use them takes more
memory for a larger text.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ..errors import UserError
from ..system.cores import count_cores
from ..system.files import dump_json, read_json, replace_path, sync_to_disk, write_atomically
from ..system.schema import parse_dataclass
from ..text import corpora, tokenizers
from .corpora import LARGE_TEXT, Corpus, SplitName
from .download import cache_directory, cache_error
from .readers import Progress, quiet
from .tokenizers import Tokenizer

Ids = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK = 1 << 20
"""Characters that are encoded at a time, and a little more, up to where a text may be cut."""
LESSON = 1 << 14
"""Characters that a tokenizer learns from at a time: the library keeps 256 of them in memory."""
SAMPLE = 8
"""Chunks of a text, evenly spread, that a tokenizer learns from where there are more."""


@dataclass(frozen=True)
class Tokens:
    """A part of a text as tokens."""

    ids: Ids
    """(N,): 16 bits each, or 32 of a tokenizer with more than 65,536."""
    bytes: int
    """Of the text that they stand for."""


@dataclass(frozen=True)
class _Kept:
    """What the cache knows of the tokens in a file beside."""

    tokens: int
    bytes: int


def get_tokenizer(kind: str, corpus: Corpus, val_fraction: float, progress: Progress) -> Tokenizer:
    """The tokenizer that kind asks for (tokenizers.make), learned from a corpus. Raises UserError.

    char knows every character of the text; bpe learns from the part to train on, from a sample of
    it where that is large. What was learned from a large text is kept.
    """
    if not tokenizers.learns(kind):
        return tokenizers.make(kind, (), ())
    if corpus.facts.bytes <= LARGE_TEXT:
        return _learned(kind, corpus, val_fraction)
    key = [corpus.facts.sha256, kind, None if kind == "char" else val_fraction]
    kept = _file("tokenizer", key).with_suffix(".json")
    with suppress(UserError):  # it is not there, or damaged
        return tokenizers.from_file(kept)
    with _keeping(kept), _alone(kept.with_suffix(".lock"), progress):
        with suppress(UserError):  # what somebody else wrote meanwhile
            return tokenizers.from_file(kept)
        progress("learning a tokenizer", 0, 0)
        tokenizer = _learned(kind, corpus, val_fraction)
        write_atomically(kept, dump_json(tokenizer.to_json()))
    return tokenizer


def _learned(kind: str, corpus: Corpus, val_fraction: float) -> Tokenizer:
    sample = cut(_sample(corpus, val_fraction), tokenizers.AT_SPACES, LESSON)
    tokenizer = tokenizers.make(kind, corpus.pieces(), sample)
    corpus.check()
    return tokenizer


def _sample(corpus: Corpus, val_fraction: float) -> Iterator[str]:
    """The part of a corpus to train on; of a large one, chunks that are evenly spread."""
    chunks = cut(corpus.part("train", val_fraction), tokenizers.AT_SPACES, CHUNK)
    of_all = corpora.cut_at(corpus.facts.characters, val_fraction) / CHUNK
    taken = 0
    for number, chunk in enumerate(chunks):
        if of_all <= SAMPLE or number >= taken * of_all / SAMPLE:
            taken += 1
            yield chunk


def encode(
    corpus: Corpus,
    tokenizer: Tokenizer,
    part: SplitName | None = None,
    val_fraction: float = 0.1,
    progress: Progress = quiet,
) -> Tokens:
    """The tokens of a part of a corpus, or of all of it. Raises UserError."""
    if corpus.tokens:
        return _as_they_are(corpus, corpus.tokens, tokenizer, part)
    pieces = corpus.part(part, val_fraction) if part else corpus.pieces()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    encoded = _encoded(cut(pieces, tokenizer.boundary, CHUNK), tokenizer, dtype)
    what, total = f"encoding {part or 'all'} of the text", corpus.facts.bytes
    if part:
        at = corpora.cut_at(corpus.facts.characters, val_fraction)
        characters = at if part == "train" else corpus.facts.characters - at
        total = round(total * characters / corpus.facts.characters)
    watched = _watched(encoded, what, total, progress, corpus.check)
    if corpus.facts.bytes <= LARGE_TEXT:
        arrays = [*watched]
        ids = np.concatenate([each.ids for each in arrays] or [np.empty(0, dtype)])
        return Tokens(ids, sum(each.bytes for each in arrays))
    key = [corpus.facts.sha256, tokenizer.to_json(), part, val_fraction if part else None]
    return _mapped(_file("tokens", key), watched, dtype, progress)


def _as_they_are(
    corpus: Corpus, folder: Path, tokenizer: Tokenizer, part: SplitName | None
) -> Tokens:
    """The tokens that a folder holds already; how many bytes they stand for is counted once."""
    if part is None:
        raise UserError(f"{folder} holds two parts: take one with --split train or --split val")
    file, dtype = folder / f"{part}.bin", np.dtype("<u2")
    tokens, rest = divmod(file.stat().st_size, dtype.itemsize)
    if rest or not tokens:
        raise UserError(f"{file} is not made of tokens of 16 bits: write it anew")
    ids = np.memmap(file, dtype, mode="c", shape=(tokens,))
    about = _file("tokens", [corpus.facts.sha256, tokenizer.to_json(), part]).with_suffix(".json")
    with suppress(OSError, UserError, ValueError):
        return Tokens(ids, parse_dataclass(_Kept, read_json(about), {}).bytes)
    times = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, tokens, CHUNK):
        times += np.bincount(ids[start : start + CHUNK], minlength=1 << 16)
    if (highest := int(times.nonzero()[0].max())) >= tokenizer.vocab_size:
        raise UserError(
            f"{file} has the token {highest}, and the tokenizer only {tokenizer.vocab_size}: name "
            f"the one that made it with --tokenizer"
        )
    size = sum(int(times[i]) * len(tokenizer.piece(int(i))) for i in times.nonzero()[0])
    if corpus.facts.bytes > LARGE_TEXT:
        with suppress(OSError):
            about.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(about, dump_json(asdict(_Kept(tokens, size))))
    return Tokens(ids, size)


def cut(pieces: Iterable[str], boundary: str, size: int) -> Iterator[str]:
    """A text in pieces as chunks of so many characters, and on from there to the next boundary.

    But of four times as many at most. Where the cuts are depends on the text alone, not on the
    pieces.
    """
    pattern, text, searched, most = re.compile(boundary), "", size, 4 * size
    for piece in pieces:
        text += piece
        while len(text) > searched:
            found = pattern.search(text, searched, most + 1)
            if not found and len(text) <= most:
                searched = len(text)
                break
            at = found.start() if found else most
            yield text[:at]
            text, searched = text[at:], size
    if text:
        yield text


def _encoded(chunks: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> Iterator[Tokens]:
    """The tokens of each chunk, in their order; several are encoded at a time."""

    def one(chunk: str) -> Tokens:
        return Tokens(tokenizer.encode_array(chunk).astype(dtype), len(chunk.encode()))

    ahead: deque[Future[Tokens]] = deque()
    with ThreadPoolExecutor(count_cores()) as pool:
        for chunk in chunks:
            ahead.append(pool.submit(one, chunk))
            if len(ahead) > 2 * count_cores():  # no more are in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _watched(
    encoded: Iterable[Tokens], what: str, total: int, progress: Progress, check: Callable[[], None]
) -> Iterator[Tokens]:
    """The same, while somebody hears how far it is; check() comes at the end."""
    done = 0
    for tokens in encoded:
        yield tokens
        done += tokens.bytes
        progress(what, done, total)
    check()


# The cache.


def _file(kind: str, key: Sequence[object]) -> Path:
    """Where what follows from a key is kept."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_directory() / f"{kind}-{digest}"


def _mapped(
    file: Path, encoded: Iterator[Tokens], dtype: np.dtype[Any], progress: Progress
) -> Tokens:
    """The tokens in a file of the cache, where they are put if they are not there yet.

    A description beside the file, written last, says that it is whole. Who comes while another
    process writes it waits.
    """
    array, about = file.with_suffix(".bin"), file.with_suffix(".json")
    known = _known(array, about, dtype)
    if known is None:
        with _keeping(array), _alone(file.with_suffix(".lock"), progress):
            known = _known(array, about, dtype)  # what somebody else wrote meanwhile
            if known is None:
                known = _written(array, encoded)
                write_atomically(about, dump_json(asdict(known)))
    if not known.tokens:  # there is nothing to map
        return Tokens(np.empty(0, dtype), known.bytes)
    # Nobody writes into a mapping, but torch wants one that could be.
    ids = np.memmap(array, dtype, mode="c", shape=(known.tokens,))
    return Tokens(ids, known.bytes)


@contextmanager
def _alone(file: Path, progress: Progress) -> Iterator[None]:
    """Held by one process at a time; another waits, and says so."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process, which encodes the same", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _known(array: Path, about: Path, dtype: np.dtype[Any]) -> _Kept | None:
    """What is said of the tokens in a file, if they are there."""
    with suppress(OSError, UserError, ValueError):
        kept = parse_dataclass(_Kept, read_json(about), {})
        if array.stat().st_size == kept.tokens * dtype.itemsize:
            return kept
    return None


def _written(array: Path, encoded: Iterator[Tokens]) -> _Kept:
    """Put tokens in place of a file, whole."""
    new, tokens, size = array.with_suffix(".new"), 0, 0
    try:
        with new.open("wb") as opened:
            for each in encoded:
                opened.write(each.ids.data)
                tokens, size = tokens + len(each.ids), size + each.bytes
        sync_to_disk(new)
        replace_path(new, array)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return _Kept(tokens, size)


@contextmanager
def _keeping(file: Path) -> Iterator[None]:
    """Make the cache first, and an error of one line where it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise cache_error("the tokens of a large text", error) from None
