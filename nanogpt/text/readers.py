"""Read text from a file, from the files in a directory, or from files that match a glob pattern.

Each row of a .jsonl or .parquet file is a document. Text is yielded in chunks, so a file may be
larger than memory.
"""

import codecs
import errno
import functools
import glob
import json
import os
import re
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
"""Name of a file that marks the directory of a study; find_files() ignores this directory."""

READ_BYTES = 1 << 20
"""Number of bytes that are read from a file at a time."""

FORMATS = (
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8 {}"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {}"),
    (rb"\x1f\x8b", "a gzip file", "gzip -dc {}"),
    (rb"BZh[1-9]1AY&SY", "a bzip2 file", "bzip2 -dc {}"),
    (rb"\xfd7zXZ\x00", "an xz file", "xz -dc {}"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard file", "zstd -dc {}"),
    (rb"PK\x03\x04", "a ZIP file or an office document", ""),
    (rb"%PDF-", "a PDF file", "pdftotext {} -"),
    (rb"(?s).{257}ustar", "a tar file", ""),
    (rb"SQLite format 3\x00", "a database", ""),
)
"""Formats that are not UTF-8 text. Each has a regular expression for the first bytes of a file, a
name, and a command that prints the text ("" if no such command exists)."""


def no_progress(task: str, done: int, total: int) -> None:
    """A Progress function that does nothing."""


# Find files.


def is_pattern(data: str) -> bool:
    """Return whether `data` is a glob pattern (contains *, ? or [) and not an existing path."""
    return glob.has_magic(data) and not path_exists(data)


def is_pipe(data: str) -> bool:
    """Return whether `data` is a named pipe, for example <(zcat text.gz) in a shell."""
    with suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.stat(data).st_mode)
    return False


def find_files(data: str, excluded: Path | None = None) -> list[Path]:
    """Return one file, the text files in a directory, or the files that match a glob pattern.

    The files are sorted. Hidden files, the directories of runs and studies, and the directory
    `excluded` are left out.
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
    # Keep broken links, because an attempt to read a broken link raises an error with its path.
    files = sorted(
        p
        for p in _walk(path, excluded)
        if p.suffix.lower() in suffixes and (is_file(p) or not path_exists(p))
    )
    if not files:
        advice = ""
        if other := min((p for p in _walk(path, excluded) if is_file(p)), default=None):
            pattern = Path(glob.escape(data), "**", f"*{other.suffix}")
            advice = f", or a pattern such as {join_command([pattern])}"
        raise UserError(
            f"{data} is a directory without text files ({', '.join(suffixes)}): name another "
            f"directory{advice}"
        )
    return files


def _require_listable(pattern: str) -> None:
    """Raise UserError if a pattern needs a directory that this user has no permission to read.

    glob() skips such a directory without an error.
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
    """Return whether a directory is `excluded`, a run directory or a study directory."""
    if excluded is not None and directory.absolute() == excluded.absolute():
        return True
    marks = (OUTPUT_MARK,), ("run.json", "metrics.jsonl"), (".lock", ".pid")
    return any(all(os.path.exists(directory / name) for name in names) for names in marks)


# Read documents.


def read_files(
    files: Iterable[Path], column: str, separator: str, name: str | None = None
) -> Iterator[str]:
    """Yield the text of files in chunks, with `separator` between documents.

    Each row of a .jsonl or .parquet file is a document, whose text is in the column `column`. Any
    other file is one document. Empty documents are left out. If a file cannot be read, raises a
    UserError that shows `name`, by default the path.
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
        yield get_row_text(row, column, f"{name}, line {number}")


def _read_lines(file: Path, name: str) -> Iterator[str]:
    r"""Yield the lines, split only at \n, because JSON may contain other line separators."""
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
        schema = table.schema_arrow
        names = [f.name for f in schema if re.match(r"\w*string|dictionary.*string", str(f.type))]
        if column not in schema.names:
            get_row_text({}, column, name, names)
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield get_row_text({column: value}, column, f"{name}, row {number}", names)
                number += 1
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {name}: {reason}; name a text file") from None


def get_row_text(
    row: dict[str, Any], column: str, place: str, names: Iterable[str] | None = None
) -> str:
    """Return the text in a column of a row.

    If the row has no text in `column`, raises a UserError that shows `place` and suggests other
    columns. `names` are the names of the columns with text, by default those of this row.
    """
    text = row.get(column)
    if not isinstance(text, str):
        names = [key for key in row if isinstance(row[key], str)] if names is None else names
        others = [name for name in names if name != column]
        if text is None and column in row:
            raise UserError(f"{place}: the column {column!r} is null; fix or delete the row")
        problem = f"the column {column!r} is not text"
        if column not in row:
            problem = f"there is no column {column!r}"
        advice = "no other column contains text; fix the row"
        if others:
            shown = ", ".join(others[:10] + ["…"] * (len(others) > 10))
            advice = f"choose another with --column ({shown}), or fix the row"
        raise UserError(f"{place}: {problem}; {advice}")
    if not is_encodable(text):
        raise UserError(f"{place}: the text has an unpaired surrogate; fix or delete it")
    return text


def is_encodable(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8.

    Strings in JSON and in file names can have unpaired surrogates, which UTF-8 cannot encode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_encodable(path: str | Path) -> None:
    """Raise UserError if a path is not valid UTF-8, which JSON and some libraries need."""
    if not is_encodable(str(path)):
        raise UserError(f"the path {str(path)!a} is not valid UTF-8: rename it")


# Read one file.


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises UserError if the text is empty.

    A byte-order mark is not part of the text.
    """
    if text := "".join(read_file(path)):
        return text
    raise empty_error(str(path))


def read_file(path: Path, name: str | None = None) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks. A UserError shows `name`, by default the path."""
    name = name or str(path)
    try:
        if path.is_char_device() or path.is_block_device():  # a device may have no end
            raise UserError(f"{path} is a device: name a text file")
        with path.open("rb") as file:
            yield from decode_utf8(file, name)
    except OSError as error:
        raise read_error(name, error) from None


def open_standard_input() -> BinaryIO:
    """Return standard input in binary mode. Raises UserError if standard input is closed."""
    if sys.stdin is None:
        raise empty_error("standard input")
    return sys.stdin.buffer


def decode_utf8(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks, without a byte-order mark.

    If the file is not UTF-8 or cannot be read, raises a UserError that shows `name`.
    """
    decoder, bytes_read, start = codecs.getincrementaldecoder("utf-8-sig")(), 0, b""
    for raw in chain(read_blocks(file, name), [b""]):
        if not bytes_read:
            start = raw[:4096]
            _refuse_other_format(start, name)
        bytes_read += len(raw)
        try:
            yield decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            _refuse_other_format(start, name, is_utf8=False)
            position = bytes_read - len(error.object) + error.start
            command = _make_command("iconv -f latin1 -t UTF-8 {}", name)
            raise UserError(
                f"{name} is not UTF-8: byte {position} is 0x{error.object[error.start]:02x}; "
                f"convert it, for example from latin1 with: {command}"
            ) from None


def read_blocks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks. If reading fails, raises a UserError with `name`."""
    try:
        while block := file.read(READ_BYTES):
            yield block
    except OSError as error:
        raise read_error(name, error) from None


def _refuse_other_format(start: bytes, name: str, is_utf8: bool = True) -> None:
    """Raise UserError if `start`, the first bytes of a file, show that the file is not UTF-8 text.

    If the file is already known to be invalid UTF-8, `is_utf8` is false. Then even one zero byte is
    a sign of another format.
    """
    if start.startswith(b"PAR1"):
        raise UserError(f"{name} is a Parquet file: give it a name that ends in .parquet")
    found = next(
        ((form, command) for sign, form, command in FORMATS if re.match(sign, start)), None
    )
    if not found and (encoding := _guess_wide_encoding(start, 8 if is_utf8 else 1)):
        found = encoding, f"iconv -f {encoding} -t UTF-8 {{}}"
    if not found and not is_utf8 and b"\0" in start:
        found = "a binary file", ""
    if not found:
        return
    form, command = found
    if not command:
        raise UserError(f"{name} is {form}, not text: save its text as a file in UTF-8")
    raise UserError(
        f"{name} is {form}, not text in UTF-8: convert it, for example with: "
        f"{_make_command(command, name)}"
    )


def _guess_wide_encoding(start: bytes, least: int) -> str | None:
    """Guess from the zero bytes which UTF-16 or UTF-32 encoding a text has; None if neither.

    The text has no byte-order mark. UTF-16 stores a character such as the space in two bytes, and
    UTF-32 in four. Some of these bytes are zero, always at the same positions. The result is also
    None if the number of zero bytes is less than `least` and less than a quarter of all bytes.
    """
    zeros = [start[place::4].count(0) for place in range(4)]
    total = sum(zeros)
    if len(start) % 2 or not total or (total < least and total * 4 < len(start)):
        return None
    units, few = len(start) // 4, total // 20
    if zeros[0] >= units > 0 and zeros[1] > units // 2 and zeros[3] <= few:
        return "UTF-32BE"
    if zeros[3] >= units > 0 and zeros[2] > units // 2 and zeros[0] <= few:
        return "UTF-32LE"
    if zeros[0] + zeros[2] <= few:
        return "UTF-16LE"
    return "UTF-16BE" if zeros[1] + zeros[3] <= few else None


def _make_command(command: str, name: str) -> str:
    """Return a command that converts the file `name` to a new file with the same ending."""
    suffixes = [s for s in Path(name).suffixes if s.lower() in TEXT_SUFFIXES + DOCUMENT_SUFFIXES]
    file = join_command([Path(name)]) if os.path.exists(name) else "FILE"
    return f"{command.format(file)} > new{suffixes[-1] if suffixes else '.txt'}"


def empty_error(name: str) -> UserError:
    """Return the error for an empty text."""
    return UserError(f"{name} is empty: name a file with text in it")


def read_error(name: str, error: OSError) -> UserError:
    """Return the error for a file that is missing or cannot be read."""
    if is_denied(error):
        return access_error(name, error)
    return UserError(f"cannot read {name}: {error.strerror}; name a text file")
