"""Encode a corpus as tokens, in chunks and on several cores. Cache the tokens of a large text.

The tokens of a large text are written to a file in the cache. This file is mapped into memory, so
memory use does not depend on the size of the text. The file name contains a hash of the text, the
tokenizer and the split.
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
from numpy.typing import NDArray

from ..errors import UserError
from ..system.cores import count_cores
from ..system.files import dump_json, read_json, replace_path, sync_to_disk, write_atomically
from ..system.schema import parse_dataclass
from .bpe import SPACE_BOUNDARY
from .corpora import LARGE_TEXT, Corpus, SplitName, count_training_characters
from .download import cache_directory, cache_error, lock_file, new_directory
from .readers import Progress, no_progress, read_error
from .streams import ByteDecodeStream
from .tokenizers import Tokenizer, is_trained_on_text, make_tokenizer, read_tokenizer

Ids = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK_SIZE = 1 << 20
"""After this many characters, a chunk ends at the next place where the text may be split."""
TRAINING_CHUNK_SIZE = 1 << 14
"""Number of characters in a chunk for the tokenizer trainer, which keeps 256 chunks in memory."""
SAMPLE_CHUNKS = 8
"""A bpe tokenizer is trained on at most this many chunks of CHUNK_SIZE characters. They are evenly
spaced in the training split."""
TOKENS = "the tokens of the text"
"""The name that error messages use for the tokens in the cache."""


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text, and the size of the text."""

    ids: Ids
    """Token ids (N,): 16-bit if the vocabulary has at most 65,536 tokens, otherwise 32-bit."""
    bytes: int
    """The number of bytes of the text in UTF-8."""
    lost_bytes: int
    """The number of bytes of the lost characters: the tokens do not reproduce these characters."""


# Tokenizers.


def get_tokenizer(kind: str, corpus: Corpus, val_fraction: float, progress: Progress) -> Tokenizer:
    """Return a tokenizer for a corpus; make_tokenizer() explains `kind`. Raises UserError.

    A char tokenizer has a token for every character of the text. A bpe tokenizer is trained on the
    training split, or on a sample of a large split. The cache keeps the tokenizer of a large text.
    """
    if not is_trained_on_text(kind):
        return make_tokenizer(kind, (), ())
    if corpus.facts.bytes <= LARGE_TEXT:
        return _train_tokenizer(kind, corpus, val_fraction)
    key = [corpus.facts.sha256, kind, None if kind == "char" else val_fraction]
    cached = _cache_path("tokenizer", key).with_suffix(".json")
    with suppress(UserError):  # missing or damaged
        return read_tokenizer(cached)
    waiting = "waiting for another process that is training the same tokenizer"
    with _writing_cache(cached, "the tokenizer"), lock_file(cached, waiting, progress):
        with suppress(UserError):  # another process may have written the file
            return read_tokenizer(cached)
        progress("training a tokenizer", 0, 0)
        tokenizer = _train_tokenizer(kind, corpus, val_fraction)
        write_atomically(cached, dump_json(tokenizer.to_json()))
    return tokenizer


def _train_tokenizer(kind: str, corpus: Corpus, val_fraction: float) -> Tokenizer:
    sample = _sample_training_split(corpus, val_fraction)
    training_text = rechunk(sample, SPACE_BOUNDARY, TRAINING_CHUNK_SIZE)
    tokenizer = make_tokenizer(kind, corpus.chunks(), training_text)
    corpus.check_unchanged()
    return tokenizer


def _sample_training_split(corpus: Corpus, val_fraction: float) -> Iterator[str]:
    """Yield all chunks of a short training split, or SAMPLE_CHUNKS equally spaced chunks."""
    characters = count_training_characters(corpus.facts.characters, val_fraction)
    total_chunks = characters / CHUNK_SIZE
    training_text = corpus.read_split("train", val_fraction)
    sampled = 0
    for number, chunk in enumerate(rechunk(training_text, SPACE_BOUNDARY, CHUNK_SIZE)):
        if total_chunks <= SAMPLE_CHUNKS or number >= sampled * total_chunks / SAMPLE_CHUNKS:
            sampled += 1
            yield chunk


# Tokens.


def encode_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer,
    split: SplitName | None = None,
    val_fraction: float = 0.1,
    progress: Progress = no_progress,
) -> Tokens:
    """Encode a split of a corpus, or the whole text if `split` is None. Raises UserError."""
    if corpus.token_folder:
        return _load_token_file(corpus, corpus.token_folder, tokenizer, split)
    text = corpus.read_split(split, val_fraction) if split else corpus.chunks()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    encoded = _encode_chunks(rechunk(text, tokenizer.boundary, CHUNK_SIZE), tokenizer, dtype)
    total_bytes = corpus.facts.bytes
    if split:  # estimate the size of the split: assume that all characters have equal sizes
        train_characters = count_training_characters(corpus.facts.characters, val_fraction)
        val_characters = corpus.facts.characters - train_characters
        characters = train_characters if split == "train" else val_characters
        total_bytes = round(total_bytes * characters / corpus.facts.characters)
    task = f"encoding the {split} split" if split else "encoding the text"
    encoded = _report_progress(encoded, task, total_bytes, progress, corpus.check_unchanged)
    if corpus.facts.bytes <= LARGE_TEXT:
        parts = [*encoded]
        ids = np.concatenate([part.ids for part in parts] or [np.empty(0, dtype)])
        lost_bytes = sum(part.lost_bytes for part in parts)
        return Tokens(ids, sum(part.bytes for part in parts), lost_bytes)
    key = [corpus.facts.sha256, tokenizer.to_json(), split, val_fraction if split else None]
    return _encode_to_cache(_cache_path("tokens", key), encoded, dtype, progress)


def rechunk(chunks: Iterable[str], boundary: str, size: int) -> Iterator[str]:
    """Yield the text in chunks that end at the first match of `boundary` after `size` characters.

    A chunk has at most 4 * `size` characters. The result does not depend on the sizes of the
    input chunks.
    """
    pattern, text, searched, max_size = re.compile(boundary), "", size, 4 * size
    for chunk in chunks:
        text += chunk
        while len(text) > searched:
            match = pattern.search(text, searched, max_size + 1)
            if not match and len(text) <= max_size:
                searched = len(text)
                break
            end = match.start() if match else max_size
            yield text[:end]
            text, searched = text[end:], size
    if text:
        yield text


def _encode_chunks(
    chunks: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Iterator[Tokens]:
    """Encode chunks with one thread per core, and yield the tokens of each chunk in order."""

    def encode(chunk: str) -> Tokens:
        ids = tokenizer.encode_array(chunk)
        lost_bytes = tokenizer.count_lost_bytes(chunk, ids)
        return Tokens(ids.astype(dtype), len(chunk.encode()), lost_bytes)

    queue: deque[Future[Tokens]] = deque()
    with ThreadPoolExecutor(count_cores()) as pool:
        for chunk in chunks:
            queue.append(pool.submit(encode, chunk))
            if len(queue) > 2 * count_cores():  # limits the number of chunks in memory
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def _report_progress(
    encoded: Iterable[Tokens],
    task: str,
    total_bytes: int,
    progress: Progress,
    check_unchanged: Callable[[], None],
) -> Iterator[Tokens]:
    """Yield the items of `encoded`, and report progress. Call check_unchanged() at the end."""
    done = 0
    for tokens in encoded:
        yield tokens
        done += tokens.bytes
        progress(task, done, total_bytes)
    check_unchanged()


# Files of tokens.


@dataclass(frozen=True)
class _TokenFileInfo:
    """The content of the JSON file that describes a token file.

    The JSON file is written after the token file.
    """

    tokens: int
    bytes: int
    lost_bytes: int


def _load_token_file(
    corpus: Corpus, folder: Path, tokenizer: Tokenizer, split: SplitName | None
) -> Tokens:
    """Map one split of a token directory into memory, and cache the size of the decoded text."""
    if split is None:
        raise UserError(f"{folder} has two splits: choose train or val")
    file, dtype = folder / f"{split}.bin", np.dtype("<u2")
    try:
        length, rest = divmod(file.stat().st_size, dtype.itemsize)
        if rest or not length:
            raise UserError(f"{file} does not contain 16-bit tokens: create it again")
        ids = np.memmap(file, dtype, mode="c", shape=(length,))
    except OSError as error:
        raise read_error(str(file), error) from None
    key = [corpus.facts.sha256, tokenizer.to_json(), split]
    info_file = _cache_path("tokens", key).with_suffix(".json")
    with suppress(OSError, UserError, ValueError):
        info = parse_dataclass(_TokenFileInfo, read_json(info_file), {})
        return Tokens(ids, info.bytes, info.lost_bytes)
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, length, CHUNK_SIZE):
        counts += np.bincount(ids[start : start + CHUNK_SIZE], minlength=1 << 16)
    used_ids = counts.nonzero()[0].tolist()
    if (highest := max(used_ids)) >= tokenizer.vocab_size:
        raise UserError(
            f"{file} has the token {highest}, but the tokenizer has only {tokenizer.vocab_size} "
            f"tokens: use the tokenizer that encoded the file"
        )
    stream = tokenizer.decode_stream()
    if isinstance(stream, ByteDecodeStream):
        size = sum(int(counts[i]) * len(tokenizer.token_bytes(i)) for i in used_ids)
    else:  # the text of a token depends on its neighbours
        chunks = (ids[start : start + CHUNK_SIZE] for start in range(0, length, CHUNK_SIZE))
        size = sum(len(stream.push(*chunk.tolist()).encode()) for chunk in chunks)
        size += len(stream.end().encode())
    # The original text of the unknown tokens is not known. Assume that it has as many bytes per
    # token as the decoded text.
    unknown = 0 if tokenizer.unknown_id is None else int(counts[tokenizer.unknown_id])
    lost_bytes = round(size * unknown / length)
    if corpus.facts.bytes > LARGE_TEXT:
        with suppress(OSError):  # without the cache, the next command is only slower
            info_file.parent.mkdir(parents=True, exist_ok=True)
            info = _TokenFileInfo(length, size, lost_bytes)
            write_atomically(info_file, dump_json(asdict(info)))
    return Tokens(ids, size, lost_bytes)


def _encode_to_cache(
    path: Path, encoded: Iterator[Tokens], dtype: np.dtype[Any], progress: Progress
) -> Tokens:
    """Map a token file in the cache into memory; write the file first if it does not exist.

    If another process is writing the file, wait for that process.
    """
    file, info_file = path.with_suffix(".bin"), path.with_suffix(".json")
    info = _read_info(file, info_file, dtype)
    if info is None:
        waiting = "waiting for another process that is encoding the same text"
        with _writing_cache(file, TOKENS), lock_file(path, waiting, progress):
            # Another process may have written the file while this process waited.
            info = _read_info(file, info_file, dtype)
            if info is None:
                info = _write_tokens(file, encoded)
                write_atomically(info_file, dump_json(asdict(info)))
    if not info.tokens:  # an empty file cannot be mapped
        return Tokens(np.empty(0, dtype), info.bytes, info.lost_bytes)
    # The mapping is copy-on-write (mode "c") because torch warns about read-only arrays.
    ids = np.memmap(file, dtype, mode="c", shape=(info.tokens,))
    return Tokens(ids, info.bytes, info.lost_bytes)


def _read_info(file: Path, info_file: Path, dtype: np.dtype[Any]) -> _TokenFileInfo | None:
    """Return the content of `info_file`; None if one of the two files is missing or incomplete."""
    with suppress(OSError, UserError, ValueError):
        info = parse_dataclass(_TokenFileInfo, read_json(info_file), {})
        if file.stat().st_size == info.tokens * dtype.itemsize:
            return info
    return None


def _write_tokens(file: Path, encoded: Iterator[Tokens]) -> _TokenFileInfo:
    """Write tokens to a new file, then rename it to `file`, which is therefore never incomplete."""
    length, size, lost_bytes = 0, 0, 0
    with new_directory(TOKENS) as directory:
        new = directory / "tokens"
        with new.open("wb") as opened:
            for tokens in encoded:
                opened.write(tokens.ids.data)
                length, size = length + len(tokens.ids), size + tokens.bytes
                lost_bytes += tokens.lost_bytes
        sync_to_disk(new)
        replace_path(new, file)
    return _TokenFileInfo(length, size, lost_bytes)


# The cache.


def _cache_path(kind: str, key: Sequence[object]) -> Path:
    """Return the path, without suffix, of the cache files for a key."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_directory() / f"{kind}-{digest}"


@contextmanager
def _writing_cache(file: Path, name: str) -> Iterator[None]:
    """Create the directory of a cache file. In the `with` block, OSError becomes UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise cache_error(name, error) from None
