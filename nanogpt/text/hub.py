"""Datasets and models of the Hugging Face Hub.

The text of a dataset is written to a file in the cache, which later commands read.
"""

import gc
import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..system.files import (
    dump_json,
    path_exists,
    read_json,
    remove_if_present,
    replace_path,
    write_atomically,
)
from .download import (
    cache_directory,
    cache_error,
    download_error,
    lock_file,
    not_cached_error,
    short_hash,
)
from .readers import Progress, get_row_text

SAVED_BYTES = 64 << 20
"""The position of a download is saved each time after at least this many bytes of text."""


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
    cached = cache_directory() / f"hf-{short_hash(key)}.txt"
    if path_exists(cached) and not refresh:
        return cached
    if not may_download:
        raise not_cached_error(name, column, separator)
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
    the version of the dataset. A download of another version starts again.
    """
    found = {} if refresh else _read_state(part, state)
    rows, version = _open_dataset(name, found.get("version"))
    saved: dict[str, Any] = {"bytes": 0, "rows": 0}
    task = f"downloading {name}"
    with suppress(KeyError, TypeError, ValueError):
        if found.get("version") == version:
            rows.load_state_dict(found["position"])
            saved = found
    if found and not saved["rows"]:
        task += " from the start, because the dataset or the library datasets has changed"
    size, number = saved["bytes"], saved["rows"]
    try:
        if not number:
            remove_if_present(state)
            part.touch()
        with part.open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            with closing(_read_texts(rows, name, column, number)) as texts:
                for text in texts:
                    number += 1
                    if text:  # an empty text gets no separator
                        size += file.write((separator * (size > 0) + text).encode())
                    if size > saved["bytes"] + SAVED_BYTES:
                        file.flush()
                        os.fsync(file.fileno())
                        saved = {"bytes": size, "rows": number, "version": version}
                        saved["position"] = rows.state_dict()
                        write_atomically(state, dump_json(saved))
                    progress(task, size, 0)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if not saved["rows"]:
            remove_if_present(part)
        raise
    finally:
        # After an error, Python would abort if it ended before the threads of Arrow that read ahead
        # (github.com/apache/arrow/issues/45214).
        gc.collect()


def _read_state(part: Path, state: Path) -> dict[str, Any]:
    """Return what the file `state` says about `part`, or nothing if it does not fit."""
    with suppress(OSError, UserError, KeyError, TypeError, ValueError):
        found: dict[str, Any] = read_json(state)
        if 0 < found["bytes"] <= part.stat().st_size and len(found["version"]) == 2:
            return found
    return {}


def _open_dataset(name: str, wanted: list[str] | None) -> tuple[Any, list[str]]:
    """Return the rows of a dataset's training split, as a stream, and their version.

    The version consists of the version of the library `datasets`, and of the commit of the dataset
    (for a folder of this machine, of a hash of its list of files). `wanted` is the version to
    continue; by default, this is the newest one. Raises UserError.
    """
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name} needs the library datasets: install it with `pip install datasets`"
        ) from None
    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):  # they also print errors that they raise
        logging.getLogger(library).setLevel("CRITICAL")
    path, _, config = name.removeprefix("hf:").partition(":")
    if not path.strip():
        raise UserError(f"{name} has no dataset: write hf:NAME or hf:NAME:CONFIG")
    commit, unknown, is_folder = None, None, os.path.exists(path)
    continues = wanted is not None and wanted[0] == datasets.__version__ and not is_folder
    if wanted and continues:
        commit = wanted[1]
    elif not is_folder:
        try:
            commit = huggingface_hub.HfApi().dataset_info(path).sha
        except Exception as error:
            unknown = error
    try:
        rows = datasets.load_dataset(
            path, config or None, split="train", streaming=True, revision=commit
        )
    except Exception as error:  # `datasets` and its libraries raise many types of errors
        advice = "check the name; some datasets need a configuration, hf:NAME:CONFIG"
        if isinstance(error, ConnectionError):
            advice = "check the network and the name"
        elif continues:
            advice = f"to start again with the newest version, instead of {commit}, use --refresh"
        raise download_error(name, error, advice) from None
    if unknown:  # the error of load_dataset() is usually better
        raise download_error(name, unknown, "check the network and the name") from None
    return rows, [datasets.__version__, commit or _hash_list_of_files(path)]


def _hash_list_of_files(folder: str) -> str:
    """Return a hash of the names, sizes and modification times of the files of a folder."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return short_hash(repr([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]))


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
        raise download_error(name, error, "check the network and the name") from None


def _read_texts(rows: Any, name: str, column: str, first: int) -> Generator[str]:
    """For each row, yield the text in the column `column`. `first` numbers the first row."""
    with closing(iter(rows)) as stream:
        try:
            for number, row in enumerate(stream, start=first):
                yield get_row_text(row, column, f"{name}, row {number}")
        except UserError:
            raise
        except Exception as error:  # `datasets` and its libraries raise many types of errors
            advice = "repeat the command, which continues the download; if the reason stays the "
            advice += "same, a file of the dataset is damaged, or differs from the others"
            raise download_error(name, error, advice) from None
