"""What is far away, or can be read only once: fetched into a file of the cache, which stays.

The one place that opens the network.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..system.files import compute_sha256, replace_path
from .readers import BLOCK, Progress, empty, get_text, joined


def cache_directory() -> Path:
    """Where corpora are kept: $NANOGPT_CACHE, or the platform's place for caches."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt"))


def stream(opened: BinaryIO, name: str) -> Path:
    """The file with all that comes from standard input, or through a pipe. Raises UserError."""
    with _into_cache(name) as directory:
        hashed, file = hashlib.sha256(), directory / "new"
        with file.open("wb") as new:
            for block in iter(partial(opened.read, BLOCK), b""):
                hashed.update(block)
                new.write(block)
        if not file.stat().st_size:
            raise empty(name)
        kept = cache_directory() / f"input-{hashed.hexdigest()[:16]}.txt"
        replace_path(file, kept)
    return kept


def is_url(data: str) -> bool:
    """Whether this is an address of the web."""
    return data.startswith(("http://", "https://"))


def address(data: str, fetch: bool) -> Path:
    """The file with what is at an address; #sha256=… may say what it must hash to. UserError."""
    url, _, digest = data.partition("#sha256=")
    kept = cache_directory() / f"web-{_digest(url)}.txt"
    if os.path.exists(kept) and (not digest or compute_sha256(kept) == digest.lower()):
        return kept
    if not fetch:
        raise _not_here(url)
    with _into_cache(url) as directory:
        try:
            file = download(url, None, str(directory))
        except (OSError, ValueError) as error:
            raise _cannot_get(url, error, "is the address right?") from None
        if digest and (found := compute_sha256(file)) != digest.lower():
            raise UserError(f"{url} has the SHA-256 {found}, not {digest}: look at what it is now")
        replace_path(file, kept)
    return kept


def download(url: str, known_hash: str | None, directory: str) -> Path:
    """The file in a directory to which an address was downloaded."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    get = pooch.HTTPDownloader(timeout=10)
    return Path(pooch.retrieve(url, known_hash, path=directory, downloader=get))


def dataset(name: str, column: str, separator: str, fetch: bool, progress: Progress) -> Path:
    """The file with the training split of a dataset: hf:NAME, or hf:NAME:CONFIG. UserError.

    Its rows' texts in a column, joined by the separator; they are written as they come.
    """
    kept = cache_directory() / f"hf-{_digest(json.dumps([name, column, separator]))}.txt"
    if os.path.exists(kept):
        return kept
    if not fetch:
        raise _not_here(name)
    with _into_cache(name) as directory:
        size, file = 0, directory / "new"
        with file.open("wb") as new:
            for piece in joined(([row] for row in _rows(name, column)), separator):
                size += new.write(piece.encode())
                progress(f"getting {name}", size, 0)
        replace_path(file, kept)
    return kept


def _rows(name: str, column: str) -> Iterable[str]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name} needs the library datasets: install it with `pip install datasets`"
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel("ERROR")  # it warns of every attempt
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
        for number, row in enumerate(rows):
            yield get_text(row, column, f"{name}, row {number},", row)
    except UserError:
        raise
    except Exception as error:  # the library has many types, and so have those below it
        raise _cannot_get(
            name, error, "is the name right? One may need a part, hf:NAME:PART"
        ) from None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _not_here(name: str) -> UserError:
    return UserError(f"the text of {name} is not in the cache: get it with nanogpt data {name}")


def _cannot_get(name: str, error: Exception, advice: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"cannot get {name} ({reason}): {advice}")


@contextmanager
def _into_cache(name: str) -> Iterator[Path]:
    """A directory in the cache that is gone at the end; an error of one line if there cannot be."""
    home = cache_directory()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as directory:
            yield Path(directory)
    except OSError as error:
        raise cache_error(name, error) from None


def cache_error(name: str, error: OSError) -> UserError:
    """The error of a cache that cannot be written."""
    return UserError(
        f"cannot keep {name} in {cache_directory()} ({error.strerror}): make room, or name another "
        f"directory with NANOGPT_CACHE"
    )
