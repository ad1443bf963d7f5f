"""Download a file or copy standard input into a file in the cache, which later commands read.

Only this module and hub.py download anything.
"""

import errno
import hashlib
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from ..errors import UserError, join_command
from ..system import launch
from ..system.files import (
    compute_sha256,
    path_exists,
    remove_if_present,
    replace_path,
)
from .readers import (
    DOCUMENT_SUFFIXES,
    Progress,
    empty_error,
    read_blocks,
    read_file,
)


def cache_directory() -> Path:
    """Return the directory of cached texts: $NANOGPT_CACHE, or the platform's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt")).expanduser()


def cache_stream(stream: BinaryIO, name: str) -> Path:
    """Copy standard input or a pipe into a file in the cache; return the file. Raises UserError."""
    require_single_process(f"read {name}", "save its text as a file, and name this file")
    with new_directory(name) as directory:
        digest, new = hashlib.sha256(), directory / "new"
        with new.open("wb") as file:
            for block in read_blocks(stream, name):
                digest.update(block)
                file.write(block)
        if not new.stat().st_size:
            raise empty_error(name)
        cached = cache_directory() / f"input-{digest.hexdigest()[:16]}.txt"
        replace_path(new, cached)
    return cached


def is_url(data: str) -> bool:
    """Return whether `data` is an http or https URL."""
    return data.startswith(("http://", "https://"))


def download_url(
    data: str, column: str, separator: str, may_download: bool, refresh: bool = False
) -> Path:
    """Return the path of the text of a URL in the cache. Raises UserError.

    The text is downloaded if the file is missing or `refresh` is true. The URL may end in
    #sha256=HASH, the hash that the text must have. If the file in the cache has another hash, the
    text is downloaded again.
    """
    url, _, expected = data.partition("#sha256=")
    suffix = Path(url.partition("?")[0]).suffix.lower()
    suffix = suffix if suffix in DOCUMENT_SUFFIXES else ".txt"
    cached = cache_directory() / f"web-{short_hash(url)}{suffix}"
    path_exists(cached)  # raises UserError if this user cannot access the cache
    with suppress(OSError, UserError):  # if no usable file is cached, download one
        if expected and compute_sha256(cached) == expected.lower() and not refresh:
            return cached
        if not expected and not refresh:
            _check_start(cached, url)
            return cached
    if not may_download:
        raise not_cached_error(url, column, separator)
    with new_directory(url) as directory:
        try:
            file = retrieve_file(url, None, str(directory))
        except (OSError, ValueError) as error:
            raise download_error(url, error, "check the URL") from None
        if expected and (actual := compute_sha256(file)) != expected.lower():
            raise UserError(
                f"{url} has the SHA-256 {actual}, not {expected}: the text has changed; if you "
                f"trust the new text, give its hash"
            )
        if not expected:
            _check_start(file, url)
            if suffix != ".parquet":
                for _ in read_file(file, url):  # raises UserError if the text is not UTF-8
                    pass
        replace_path(file, cached)
    return cached


def download_file(url: str, sha256: str, name: str, alternative: str) -> Path:
    """Return the path of the file `name` in the cache.

    Downloads the file if it is missing or has another hash. Raises UserError if that fails;
    `alternative` says what to do without this file.
    """
    cached = cache_directory() / name
    with suppress(OSError, UserError):
        if compute_sha256(cached) == sha256:
            return cached
    advice = f"save it as {cached}, or {alternative}"
    with new_directory(url) as directory:
        try:
            file = retrieve_file(url, None, str(directory))
        except (OSError, ValueError) as error:
            raise download_error(url, error, advice) from None
        if (actual := compute_sha256(file)) != sha256:
            raise UserError(f"{url} has the SHA-256 {actual}, not {sha256}: {advice}")
        replace_path(file, cached)
    return cached


def _check_start(file: Path, url: str) -> None:
    """Raise UserError if a file that was downloaded from a URL is empty or a web page."""
    with file.open("rb") as opened:
        start = opened.read(1024).lstrip().lower()
    if not start:
        raise empty_error(url)
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{url} is a web page, not a text: give the address of the file itself; to train on "
            f"the page, save it as a file"
        )


def retrieve_file(url: str, expected_hash: str | None, directory: str) -> Path:
    """Download a URL to a file in `directory`, and return the path of the file.

    Raises OSError if the download fails, and ValueError if the file has the wrong hash.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(timeout=10)
    return Path(pooch.retrieve(url, expected_hash, path=directory, downloader=downloader))


REFRESHING = "use --refresh", "leave it out, and first run nanogpt data with it, without torchrun"
"""Arguments of require_single_process()."""


def require_single_process(action: str, advice: str) -> None:
    """Raise UserError if there are several processes, which cannot do this at the same time."""
    if (size := launch.get_size()) > 1:
        raise UserError(f"{size} processes cannot {action}: {advice}")


def cache_error(name: str, error: OSError) -> UserError:
    """Return the error for a cache that cannot be written; `name` is the text or file to write."""
    advice = "set NANOGPT_CACHE to another directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"free some space, or {advice}"
    cache = cache_directory()
    return UserError(f"cannot write {name} to the cache in {cache} ({error.strerror}): {advice}")


def not_cached_error(name: str, column: str, separator: str) -> UserError:
    command = join_command(["nanogpt", "data", name] + ["--column", column] * (column != "text"))
    if separator != "\n\n":  # in $'…', the shell reads \n as a line break
        for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n")):
            separator = separator.replace(character, escape)
        command += f" --separator $'{separator}'"
    return UserError(f"{name} is not in the cache: download it with `{command}`")


def download_error(name: str, error: Exception, advice: str) -> UserError:
    """Return the error for a failed download of `name`."""
    reason = str(error)
    if max_retry_error := next(iter(error.args), None):  # of urllib3, with the reason inside
        cause = str(getattr(max_retry_error, "reason", ""))
        reason = cause.partition("): ")[2] or cause or reason
    reason = textwrap.shorten(reason, 200, placeholder=" …")
    return UserError(f"cannot download {name} ({reason}): {advice}")


def short_hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


@contextmanager
def new_directory(name: str) -> Iterator[Path]:
    """Yield a temporary directory in the cache, for files that are not complete yet.

    Raises UserError if the cache cannot be written. The message calls the files by `name`, such as
    "the tokens of the text".
    """
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(".new-*"):  # a killed process may have left this directory
            with suppress(TimeoutError), _temporary(left):
                pass
        with _temporary(cache / f".new-{token_hex(8)}") as directory:
            directory.mkdir()
            yield directory
    except OSError as error:
        raise cache_error(name, error) from None


@contextmanager
def lock_file(path: Path, waiting: str, progress: Progress) -> Iterator[None]:
    """Lock a cache file. If another process has locked the file, report `waiting` and wait."""
    from filelock import FileLock, Timeout  # a slow import

    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(waiting, 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    """Lock a directory during a `with` block, then remove the directory.

    Raises TimeoutError if another process has locked the directory.
    """
    from filelock import FileLock  # a slow import

    file = directory.with_name(f"{directory.name[1:]}.lock")
    with FileLock(file, timeout=0):
        try:
            yield directory
        finally:
            remove_if_present(directory)
            remove_if_present(file)
