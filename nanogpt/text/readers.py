"""The text in files: one, those of a folder or a pattern, the documents in .jsonl and .parquet.

It comes in pieces, so that a file may be larger than the memory.
"""

import codecs
import glob
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

TEXTS = (".txt", ".text", ".md", ".rst")
TABLES = (".jsonl", ".parquet")
Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many bytes of text are done, and of how many: 0 if unknown."""

BLOCK = 1 << 20
"""Bytes that are read at a time."""


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that keeps it to itself."""


def is_pattern(data: str) -> bool:
    """Whether this stands for the files that match it: no file, with one of * ? [ in it."""
    return not os.path.exists(data) and glob.has_magic(data)


def find_files(data: str) -> list[Path]:
    """A file, all files of text below a folder, or those that match a pattern. Raises UserError.

    In the order of their names.
    """
    path = Path(data)
    if is_pattern(data):
        found = sorted(p for p in map(Path, glob.glob(data, recursive=True)) if os.path.isfile(p))
        if not found:
            raise UserError(f"no file matches {data}: name another pattern")
        return found
    if not os.path.isdir(path):
        return [path]
    kinds = TEXTS + TABLES
    # One that is not there, or that nobody may look at, stays in: whoever reads it will say so.
    found = sorted(
        p
        for p in _all_below(path)
        if p.suffix in kinds and (os.path.isfile(p) or not os.path.exists(p))
    )
    if not found:
        raise UserError(
            f"{data} is a directory without a text, which would end in {', '.join(kinds)}: "
            f"name another, or a pattern such as '{path / '*.py'}'"
        )
    return found


def _all_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise read_error(error.filename, error)

    for home, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(home, name) for name in names)


def is_pipe(data: str) -> bool:
    """Whether this is a pipe with a name, as a shell makes of <(zcat text.gz)."""
    with suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.stat(data).st_mode)
    return False


def read_files(files: Iterable[Path], column: str, separator: str) -> Iterator[str]:
    """The text of files, in pieces.

    A file is a document; of .jsonl and .parquet, every row's text in a column is one. Between them
    stands the separator; those without text are left out. Raises UserError.
    """
    return joined((d for file in files for d in _documents(file, column)), separator)


def joined(documents: Iterable[Iterable[str]], separator: str) -> Iterator[str]:
    """Documents, each in pieces, as one text in pieces."""
    begun = False
    for document in documents:
        before = separator if begun else ""
        for piece in filter(None, document):
            yield before + piece
            before, begun = "", True


def _documents(file: Path, column: str) -> Iterator[Iterable[str]]:
    if file.suffix == ".jsonl":
        yield from ([row] for row in _of_jsonl(file, column))
    elif file.suffix == ".parquet":
        yield from ([row] for row in _of_parquet(file, column))
    else:
        yield read_file(file)


def _of_jsonl(file: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{file}, line {number}, is no JSON: mend it, or take it out") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}, is no JSON object: mend it, or take it out")
        yield get_text(row, column, f"{file}, line {number},", list(row))


def _lines(file: Path) -> Iterator[str]:
    r"""They end with \n alone: other line breaks may stand within a JSON string."""
    begun = ""
    for piece in read_file(file):
        *whole, begun = (begun + piece).split("\n")
        yield from whole
    yield begun


def _of_parquet(file: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{file} needs the library pyarrow: install it with `pip install pyarrow`"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            get_text({}, column, str(file), names)
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for number, value in enumerate(batch.column(0).to_pylist()):
                yield get_text({column: value}, column, f"{file}, row {number} of a batch,", names)
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {file}: {reason}; name a text file") from None


def get_text(row: dict[str, Any], column: str, where: str, names: Iterable[str]) -> str:
    """The text of a row in a column. Raises UserError."""
    if column not in row:
        raise UserError(
            f"{where} has no column {column}: name one with --column; it has {', '.join(names)}"
        )
    if not isinstance(row[column], str):
        raise UserError(f"{where} has no text in {column}: name another with --column")
    text: str = row[column]
    if not is_utf8(text):
        raise UserError(
            f"{where} has half a surrogate pair, which is no character: mend it, or take it out"
        )
    return text


def is_utf8(text: str) -> bool:
    """Whether a text can be written: JSON, and the names of files, can have what is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, not empty, without a byte-order mark. Raises UserError."""
    if text := "".join(read_file(path)):
        return text
    raise empty(str(path))


def empty(name: str) -> UserError:
    """The error of a text without a character."""
    return UserError(f"{name} is empty: name a file with text in it")


def read_file(path: Path, name: str | None = None) -> Iterator[str]:
    """The text of a UTF-8 file in pieces; name is what errors call it. Raises UserError."""
    name = name or str(path)
    try:
        if path.is_char_device() or path.is_block_device():  # they have no end
            raise UserError(f"{path} is a device: name a text file")
        with path.open("rb") as opened:
            yield from decoded(opened, name)
    except OSError as error:
        raise read_error(name, error) from None


def standard_input() -> BinaryIO:
    """Standard input as bytes. Raises UserError where it was closed."""
    if sys.stdin is None:
        raise empty("standard input")
    return sys.stdin.buffer


def read_error(name: str, error: OSError) -> UserError:
    """The error of a file that is not there, or not to be read."""
    return UserError(f"cannot read {name}: {error.strerror}; name a text file")


def decoded(opened: BinaryIO, name: str) -> Iterator[str]:
    """UTF-8 as text, in pieces, without a byte-order mark. Raises UserError, which has the name."""
    decoder, read = codecs.getincrementaldecoder("utf-8-sig")(), 0
    while True:
        raw = opened.read(BLOCK)
        read += len(raw)
        try:
            yield decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            place = read - len(error.object) + error.start
            raise UserError(
                f"{name} is not UTF-8: byte {place} is 0x{error.object[error.start]:02x}; "
                f"convert it, for example with: iconv -f latin1 -t utf-8"
            ) from None
        if not raw:
            return
