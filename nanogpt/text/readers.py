"""Read text from one file, a directory or a pattern; .jsonl and .parquet have a document per row.

Text is yielded in chunks, so a file may be larger than memory.
"""

import codecs
import errno
import functools
import glob
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError, access_error, is_denied, join_command
from ..system.files import has_access, is_directory, is_file, path_exists

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
DOCUMENT_SUFFIXES = (".jsonl", ".parquet")
Progress = Callable[[str, int, int], None]
"""Called with a task, the bytes processed so far, and the total bytes, which are 0 if unknown."""

OUTPUT_MARK = ".nanogpt"
"""Name of a file that marks the directory of a study. No file in that directory is read as text."""

READ_BYTES = 1 << 20
"""Number of bytes that are read from a file at a time."""


def no_progress(task: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


# Find files.


def is_pattern(data: str) -> bool:
    """Whether `data` is a glob pattern: it contains *, ? or [, and no such path exists."""
    return glob.has_magic(data) and not path_exists(data)


def is_pipe(data: str) -> bool:
    """Whether `data` is a named pipe, such as the one that a shell creates for <(zcat text.gz)."""
    with suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.stat(data).st_mode)
    return False


def find_files(data: str, excluded: Path | None = None) -> list[Path]:
    """Return one file, the sorted text files in a directory, or the sorted matches of a pattern.

    Hidden files, the directories of runs and studies, and the directory `excluded` are left out.
    Raises UserError if the directory has no text file, or no file matches the pattern.
    """
    path = Path(data)
    if is_pattern(data):
        _require_listable(data)
        found = map(Path, glob.glob(data, recursive=True))
        is_output = functools.cache(lambda parent: _is_output(parent, excluded))
        files = sorted(p for p in found if not any(map(is_output, p.parents)) and is_file(p))
        if not files:
            raise UserError(f"no file matches {data}: name another pattern")
        return files
    if not is_directory(path):
        return [path]
    suffixes = TEXT_SUFFIXES + DOCUMENT_SUFFIXES
    # Keep broken links: reading them raises an error that names them.
    files = sorted(
        p
        for p in _walk(path, excluded)
        if p.suffix.lower() in suffixes and (is_file(p) or not path_exists(p))
    )
    if not files:
        pattern = join_command([Path(glob.escape(data), "*.py")])
        raise UserError(
            f"{data} is a directory without text files ({', '.join(suffixes)}): name another "
            f"directory, or a pattern such as {pattern}"
        )
    return files


def _require_listable(pattern: str) -> None:
    """Raise UserError if this user may not list or search a directory of a pattern.

    glob() leaves such a directory out without an error.
    """
    parent = os.path.dirname(pattern)
    if glob.has_magic(parent):
        _require_listable(parent)
    for directory in glob.glob(parent, recursive=True) if parent else ["."]:
        if os.path.isdir(directory) and not has_access(directory, os.R_OK | os.X_OK):
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise access_error(directory, error)


def _walk(directory: Path, excluded: Path | None) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise read_error(error.filename, error)

    for parent, directories, names in os.walk(directory, onerror=refuse):
        if _is_output(Path(parent), excluded):
            directories.clear()
            continue
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _is_output(directory: Path, excluded: Path | None) -> bool:
    """Whether a directory is `excluded`, or contains a run or a study."""
    if excluded is not None and directory.absolute() == excluded.absolute():
        return True
    marks = (OUTPUT_MARK,), ("run.json", "metrics.jsonl"), (".lock", ".pid")
    return any(all(os.path.exists(directory / name) for name in names) for names in marks)


# Read documents.


def read_files(
    files: Iterable[Path], column: str, separator: str, name: str | None = None
) -> Iterator[str]:
    """Yield the text of files in chunks, with `separator` between documents.

    Each row of a .jsonl or .parquet file is a document with its text in `column`; any other file is
    one document. Empty documents are left out. Raises a UserError that shows `name`, by
    default the path.
    """
    documents = (document for file in files for document in _read_documents(file, column, name))
    return join_documents(documents, separator)


def join_documents(documents: Iterable[Iterable[str]], separator: str) -> Iterator[str]:
    """Yield the chunks of all documents, with `separator` before each document except the first."""
    is_first = True
    for document in documents:
        prefix = "" if is_first else separator
        for chunk in filter(None, document):
            yield prefix + chunk
            prefix, is_first = "", False


def _read_documents(file: Path, column: str, name: str | None) -> Iterator[Iterable[str]]:
    shown_name = name or str(file)
    if file.suffix.lower() == ".jsonl":
        yield from ([text] for text in _read_jsonl(file, column, shown_name))
    elif file.suffix.lower() == ".parquet":
        yield from ([text] for text in _read_parquet(file, column, shown_name))
    else:
        yield read_file(file, shown_name)


def _read_jsonl(file: Path, column: str, name: str) -> Iterator[str]:
    for number, line in enumerate(_read_lines(file, name), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{name}, line {number}: not JSON; fix or delete the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number}: not a JSON object; fix or delete the line")
        yield get_row_text(row, column, f"{name}, line {number}", list(row))


def _read_lines(file: Path, name: str) -> Iterator[str]:
    r"""Yield the lines, split only at \n: a JSON string may contain other line separators."""
    unfinished = ""
    for chunk in read_file(file, name):
        *lines, unfinished = (unfinished + chunk).split("\n")
        yield from lines
    yield unfinished


def _read_parquet(file: Path, column: str, name: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{name} needs the library pyarrow: install it with `pip install pyarrow`"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            get_row_text({}, column, name, names)
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield get_row_text({column: value}, column, f"{name}, row {number}", names)
                number += 1
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {name}: {reason}; name a text file") from None


def get_row_text(row: dict[str, Any], column: str, place: str, names: Iterable[str]) -> str:
    """Return the text in a column of a row. Raises a UserError that shows `place`."""
    if column not in row:
        raise UserError(f"{place}: there is no column {column}; choose one of {', '.join(names)}")
    text = row[column]
    if not isinstance(text, str):
        raise UserError(f"{place}: the column {column} is not text; choose another")
    if not is_encodable(text):
        raise UserError(f"{place}: the text has an unpaired surrogate; fix or delete it")
    return text


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text; for some strings in JSON and in file names, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_encodable(path: str | Path) -> None:
    """Raise UserError if a path is not valid UTF-8: JSON and some libraries need UTF-8."""
    if not is_encodable(str(path)):
        raise UserError(f"the path {str(path)!a} is not valid UTF-8: rename it")


# Read one file.


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark. Raises UserError if empty."""
    if text := "".join(read_file(path)):
        return text
    raise empty_error(str(path))


def read_file(path: Path, name: str | None = None) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks. A UserError shows `name`, by default the path."""
    name = name or str(path)
    try:
        if path.is_char_device() or path.is_block_device():  # such a file may have no end
            raise UserError(f"{path} is a device: name a text file")
        with path.open("rb") as file:
            yield from decode_utf8(file, name)
    except OSError as error:
        raise read_error(name, error) from None


def open_standard_input() -> BinaryIO:
    """Return standard input in binary mode. Raises UserError if it is closed."""
    if sys.stdin is None:
        raise empty_error("standard input")
    return sys.stdin.buffer


def decode_utf8(file: BinaryIO, name: str) -> Iterator[str]:
    """Decode UTF-8 in chunks, without a byte-order mark. Raises a UserError that shows `name`."""
    decoder, bytes_read = codecs.getincrementaldecoder("utf-8-sig")(), 0
    for raw in chain(read_blocks(file, name), [b""]):
        bytes_read += len(raw)
        try:
            yield decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            position = bytes_read - len(error.object) + error.start
            raise UserError(
                f"{name} is not UTF-8: byte {position} is 0x{error.object[error.start]:02x}; "
                f"convert it, for example with: iconv -f latin1 -t utf-8"
            ) from None


def read_blocks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks. Raises a UserError that shows `name`."""
    try:
        while block := file.read(READ_BYTES):
            yield block
    except OSError as error:
        raise read_error(name, error) from None


def empty_error(name: str) -> UserError:
    """The error for an empty text."""
    return UserError(f"{name} is empty: name a file with text in it")


def read_error(name: str, error: OSError) -> UserError:
    """The error for a file that is missing or cannot be read."""
    if is_denied(error):
        return access_error(name, error)
    return UserError(f"cannot read {name}: {error.strerror}; name a text file")
