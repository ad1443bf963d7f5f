"""Download a text, or copy standard input, into a permanent file in the cache.

No other module uses the network.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..system.files import compute_sha256, replace_path
from .readers import READ_BYTES, Progress, empty_error, get_row_text, join_documents


def cache_directory() -> Path:
    """The directory of cached texts: $NANOGPT_CACHE, or the platform's directory for caches."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt"))


def cache_stream(stream: BinaryIO, name: str) -> Path:
    """Copy standard input or a pipe into the cache and return the file. Raises UserError."""
    with _new_directory(name) as directory:
        digest, new = hashlib.sha256(), directory / "new"
        with new.open("wb") as file:
            for block in iter(partial(stream.read, READ_BYTES), b""):
                digest.update(block)
                file.write(block)
        if not new.stat().st_size:
            raise empty_error(name)
        cached = cache_directory() / f"input-{digest.hexdigest()[:16]}.txt"
        replace_path(new, cached)
    return cached


def is_url(data: str) -> bool:
    """Whether data is an http or https URL."""
    return data.startswith(("http://", "https://"))


def download_url(data: str, may_download: bool) -> Path:
    """Return the cached file of a URL, downloaded if necessary. Raises UserError.

    The URL may end in #sha256=HASH, the hash that its text must have. A file in the cache with
    another hash is downloaded again.
    """
    url, _, expected = data.partition("#sha256=")
    cached = cache_directory() / f"web-{_short_hash(url)}.txt"
    if os.path.exists(cached) and (not expected or compute_sha256(cached) == expected.lower()):
        return cached
    if not may_download:
        raise _not_cached_error(url)
    with _new_directory(url) as directory:
        try:
            file = retrieve_file(url, None, str(directory))
        except (OSError, ValueError) as error:
            raise _download_error(url, error, "check the URL") from None
        if expected and (actual := compute_sha256(file)) != expected.lower():
            raise UserError(
                f"{url} has the SHA-256 {actual}, not {expected}: the text has changed; if you "
                f"trust it, give the new hash"
            )
        replace_path(file, cached)
    return cached


def retrieve_file(url: str, expected_hash: str | None, directory: str) -> Path:
    """Download a URL to a file in directory. Raises OSError, or ValueError for a wrong hash."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(timeout=10)
    return Path(pooch.retrieve(url, expected_hash, path=directory, downloader=downloader))


def download_dataset(
    name: str, column: str, separator: str, may_download: bool, progress: Progress
) -> Path:
    """Return the cached file of a dataset, hf:NAME or hf:NAME:CONFIG. Raises UserError.

    It contains the text column of all rows of the training split, joined by separator. Each row is
    written when it arrives, so the dataset may be larger than memory.
    """
    key = json.dumps([name, column, separator])
    cached = cache_directory() / f"hf-{_short_hash(key)}.txt"
    if os.path.exists(cached):
        return cached
    if not may_download:
        raise _not_cached_error(name)
    with _new_directory(name) as directory:
        size, new = 0, directory / "new"
        with new.open("wb") as file:
            for chunk in join_documents(([text] for text in _read_rows(name, column)), separator):
                size += file.write(chunk.encode())
                progress(f"downloading {name}", size, 0)
        replace_path(new, cached)
    return cached


def _read_rows(name: str, column: str) -> Iterator[str]:
    """Yield the text in a column of each row of a dataset's training split."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name} needs the library datasets: install it with `pip install datasets`"
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel("ERROR")  # the library warns about every retry
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
        for number, row in enumerate(rows):
            yield get_row_text(row, column, f"{name}, row {number}", row)
    except UserError:
        raise
    except Exception as error:  # datasets and the libraries below it raise many types
        advice = "check the name; some datasets need a configuration, hf:NAME:CONFIG"
        raise _download_error(name, error, advice) from None


def cache_error(name: str, error: OSError) -> UserError:
    """The error for a cache that cannot be written; name is the text or file to write."""
    return UserError(
        f"cannot write {name} to the cache in {cache_directory()} ({error.strerror}): free some "
        f"space, or set NANOGPT_CACHE to another directory"
    )


def _not_cached_error(name: str) -> UserError:
    return UserError(f"{name} is not in the cache: download it with `nanogpt data {name}`")


def _download_error(name: str, error: Exception, advice: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"cannot download {name} ({reason}): {advice}")


def _short_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@contextmanager
def _new_directory(name: str) -> Iterator[Path]:
    """A temporary directory in the cache. Raises UserError if the cache cannot be written."""
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as directory:
            yield Path(directory)
    except OSError as error:
        raise cache_error(name, error) from None
