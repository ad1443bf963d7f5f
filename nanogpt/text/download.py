"""Download a text or copy standard input into a file in the cache, which later commands read.

No other module downloads anything.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from ..errors import UserError, join_command
from ..system import distributed
from ..system.files import (
    compute_sha256,
    dump_json,
    path_exists,
    read_json,
    remove_if_present,
    replace_path,
    write_atomically,
)
from .readers import (
    DOCUMENT_SUFFIXES,
    Progress,
    empty_error,
    get_row_text,
    read_blocks,
    read_file,
)

SAVED_BYTES = 64 << 20
"""The position of a download is saved each time after at least this many bytes of text."""


def cache_directory() -> Path:
    """Return the directory of cached texts: $NANOGPT_CACHE, or the platform's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NANOGPT_CACHE") or user_cache_dir("nanogpt")).expanduser()


def cache_stream(stream: BinaryIO, name: str) -> Path:
    """Copy standard input or a pipe into a file in the cache; return the file. Raises UserError."""
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
    cached = cache_directory() / f"web-{_short_hash(url)}{suffix}"
    path_exists(cached)  # raises UserError if this user cannot access the cache
    with suppress(OSError, UserError):  # if no usable file is cached, download one
        if expected and compute_sha256(cached) == expected.lower() and not refresh:
            return cached
        if not expected and not refresh:
            _check_start(cached, url)
            return cached
    if not may_download:
        raise _not_cached_error(url, column, separator)
    with new_directory(url) as directory:
        try:
            file = retrieve_file(url, None, str(directory))
        except (OSError, ValueError) as error:
            raise _download_error(url, error, "check the URL") from None
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
            raise _download_error(url, error, advice) from None
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


def require_single_process() -> None:
    """Raise UserError if torchrun started several processes: they would all replace the text."""
    if (size := distributed.launched_size()) > 1:
        raise UserError(
            f"{size} processes cannot use --refresh: leave it out, and first run nanogpt data with "
            f"it, without torchrun"
        )


def download_dataset(
    name: str,
    column: str,
    separator: str,
    may_download: bool,
    progress: Progress,
    refresh: bool = False,
) -> Path:
    """Return the path of the text of a dataset in the cache. Raises UserError.

    `name` is hf:NAME or hf:NAME:CONFIG. The dataset is downloaded if the file is missing or
    `refresh` is true.

    The file contains the texts of all rows of the training split, joined by `separator`. Each row
    is written when it arrives, so the dataset may be larger than memory. If the download stops, the
    next call continues it.
    """
    key = json.dumps([name, column, separator])
    cached = cache_directory() / f"hf-{_short_hash(key)}.txt"
    if path_exists(cached) and not refresh:
        return cached
    if not may_download:
        raise _not_cached_error(name, column, separator)
    part, state = cached.with_suffix(".part"), cached.with_suffix(".state")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(cached, f"waiting for another process that is downloading {name}", progress):
            if path_exists(cached) and not refresh:
                return cached
            _write_rows(part, state, name, column, separator, progress, refresh)
            replace_path(part, cached)
            remove_if_present(state)
    except OSError as error:
        raise cache_error(name, error) from None
    return cached


def _write_rows(
    part: Path,
    state: Path,
    name: str,
    column: str,
    separator: str,
    progress: Progress,
    refresh: bool,
) -> None:
    """Write all rows of a dataset to `part`. The file `state` says where to continue the download.

    `state` has the size of the part that is on the disk, the position in the dataset after it, and
    the version of the dataset: a download of another version starts again.
    """
    rows, version = _open_dataset(name)
    saved: dict[str, Any] = {"bytes": 0, "rows": 0}
    with suppress(OSError, UserError, KeyError, TypeError, ValueError):
        found = read_json(state)
        if not refresh and found["version"] == version and part.stat().st_size >= found["bytes"]:
            rows.load_state_dict(found["position"])
            saved = found
    size, number = saved["bytes"], saved["rows"]
    try:
        if not number:
            remove_if_present(state)
            part.touch()
        with part.open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            for text in _read_texts(rows, name, column, number):
                number += 1
                if text:  # an empty text gets no separator
                    size += file.write((separator * (size > 0) + text).encode())
                if size > saved["bytes"] + SAVED_BYTES:
                    file.flush()
                    os.fsync(file.fileno())
                    saved = {"bytes": size, "rows": number, "version": version}
                    saved["position"] = rows.state_dict()
                    write_atomically(state, dump_json(saved))
                progress(f"downloading {name}", size, 0)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if not saved["rows"]:
            remove_if_present(part)
        raise


def _open_dataset(name: str) -> tuple[Any, list[str | None]]:
    """Return the rows of a dataset's training split, as a stream, and their version.

    The version consists of the version of the library `datasets`, and of the commit of the dataset.
    Raises UserError.
    """
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name} needs the library datasets: install it with `pip install datasets`"
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel("ERROR")  # this logger warns about every retry
    path, _, config = name.removeprefix("hf:").partition(":")
    commit = None
    if not os.path.exists(path):  # a directory of this machine has no commit
        with suppress(Exception):  # load_dataset() has the better error
            commit = huggingface_hub.HfApi().dataset_info(path).sha
    try:
        rows = datasets.load_dataset(
            path, config or None, split="train", streaming=True, revision=commit
        )
        return rows, [datasets.__version__, commit]
    except Exception as error:  # `datasets` and its libraries raise many types of errors
        raise _dataset_error(name, error) from None


def download_model(name: str, files: list[str]) -> Path:
    """Return a directory with these files of the model hf:NAME; they are kept. Raises UserError.

    The names of the files may contain *.
    """
    try:
        from huggingface_hub import snapshot_download, utils
    except ImportError:
        raise UserError(
            f"{name} needs the library huggingface_hub: install it with `pip install "
            f"huggingface_hub`"
        ) from None
    logging.getLogger("huggingface_hub").setLevel("ERROR")
    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    model = name.removeprefix("hf:")
    try:
        return Path(snapshot_download(model, allow_patterns=files, ignore_patterns="*/*"))
    except Exception as error:  # the library raises many types of errors
        raise _download_error(name, error, "check the network and the name") from None


def _read_texts(rows: Iterable[Any], name: str, column: str, first: int) -> Iterator[str]:
    """For each row, yield the text in the column `column`. `first` numbers the first row."""
    try:
        for number, row in enumerate(rows, start=first):
            yield get_row_text(row, column, f"{name}, row {number}")
    except UserError:
        raise
    except Exception as error:  # `datasets` and its libraries raise many types of errors
        raise _dataset_error(name, error) from None


def _dataset_error(name: str, error: Exception) -> UserError:
    advice = "check the name; some datasets need a configuration, hf:NAME:CONFIG"
    return _download_error(name, error, advice)


def cache_error(name: str, error: OSError) -> UserError:
    """Return the error for a cache that cannot be written; `name` is the text or file to write."""
    return UserError(
        f"cannot write {name} to the cache in {cache_directory()} ({error.strerror}): free some "
        f"space, or set NANOGPT_CACHE to another directory"
    )


def _not_cached_error(name: str, column: str, separator: str) -> UserError:
    command = join_command(["nanogpt", "data", name] + ["--column", column] * (column != "text"))
    if separator != "\n\n":  # in $'…', the shell reads \n as a line break
        for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n")):
            separator = separator.replace(character, escape)
        command += f" --separator $'{separator}'"
    return UserError(f"{name} is not in the cache: download it with `{command}`")


def _download_error(name: str, error: Exception, advice: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"cannot download {name} ({reason}): {advice}")


def _short_hash(key: str) -> str:
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
