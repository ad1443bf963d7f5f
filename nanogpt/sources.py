"""The text in files: one, those of a folder or a pattern, the documents in .jsonl and .parquet."""

import glob
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import UserError

TEXTS = (".txt", ".text", ".md", ".rst")
TABLES = (".jsonl", ".parquet")


def is_pattern(data: str) -> bool:
    """Whether this stands for the files that match it: no file, with one of * ? [ in it."""
    return not os.path.exists(data) and glob.has_magic(data)


def read_texts(data: str, column: str, separator: str) -> str:
    """The text of a file, of all files below a folder, or of those that match a pattern.

    Files come in the order of their names; of .jsonl and .parquet, every row's text in a column is
    a document. Documents are joined by the separator. Raises UserError.
    """
    path = Path(data)
    if is_pattern(data):
        found = sorted(p for p in map(Path, glob.glob(data, recursive=True)) if p.is_file())
        if not found:
            raise UserError(f"no file matches {data}: name another pattern")
    elif path.is_dir():
        kinds = TEXTS + TABLES
        found = sorted(p for p in path.rglob("*") if p.suffix in kinds and p.is_file())
        if not found:
            raise UserError(
                f"{data} is a directory without a text, which would end in {', '.join(kinds)}: "
                f"name another, or a pattern such as '{path / '*.py'}'"
            )
    elif path.suffix not in TABLES:
        return read_text(path)
    else:
        found = [path]
    return separator.join(chain.from_iterable(_documents(file, column) for file in found))


def _documents(file: Path, column: str) -> Iterator[str]:
    if file.suffix == ".jsonl":
        yield from _of_jsonl(file, column)
    elif file.suffix == ".parquet":
        yield from _of_parquet(file, column)
    else:
        yield read_text(file)


def _of_jsonl(file: Path, column: str) -> Iterator[str]:
    # A line ends with \n alone: other line breaks may stand within a JSON string.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{file}, line {number}, is no JSON: mend it, or take it out") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}, is no JSON object: mend it, or take it out")
        yield _text(row, column, f"{file}, line {number},", list(row))


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
            _text({}, column, str(file), names)
        for batch in table.iter_batches(columns=[column]):
            for number, value in enumerate(batch.column(0).to_pylist()):
                yield _text({column: value}, column, f"{file}, row {number} of a batch,", names)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {file}: {reason}; name a text file") from None


def _text(row: dict[str, Any], column: str, where: str, names: list[str]) -> str:
    if column not in row:
        raise UserError(
            f"{where} has no column {column}: name one with --column; it has {', '.join(names)}"
        )
    if not isinstance(row[column], str):
        raise UserError(f"{where} has no text in {column}: name another with --column")
    text: str = row[column]
    return text


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, not empty, without a byte-order mark. Raises UserError."""
    if path.is_char_device() or path.is_block_device():  # they have no end
        raise UserError(f"{path} is a device: name a text file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a text file") from None
    except MemoryError:
        raise UserError(f"{path} is larger than the memory: name a smaller text") from None
    return decode(raw, str(path))


def decode(raw: bytes, name: str) -> str:
    """UTF-8 as text, not empty, without a byte-order mark; name is for the error. UserError."""
    if not raw:
        raise UserError(f"{name} is empty: name a file with text in it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start + 3 * raw.startswith(b"\xef\xbb\xbf")
        raise UserError(
            f"{name} is not UTF-8: byte {place} is 0x{raw[place]:02x}; "
            f"convert it, for example with: iconv -f latin1 -t utf-8"
        ) from None
