"""If a file is not UTF-8 text, the error advises how to convert it."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow
import pytest
import safetensors.numpy
from pyarrow import parquet

from nanogpt.errors import UserError
from nanogpt.text.corpora import load_corpus
from nanogpt.text.readers import decode_utf8

from .cases import FOLLOWED

FOLLOWED += ["my.txt is a Parquet", "my.txt is not UTF-8", "my.txt is UTF-16", "my.docx is a ZIP"]

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("iconv", "gzip", "bzip2", "xz"))),
    reason="iconv, gzip, bzip2 or xz is missing",
)
TEXT = "The quick brown fox jumps over the lazy dog, and a café is in Zürich.\n" * 9
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю.\n" * 9
CHINESE = "我能吞下玻璃而不伤身体。\n" * 9


@needs_tools
@pytest.mark.parametrize("text", [TEXT, RUSSIAN, CHINESE, TEXT[:70], "a b" * 9000 + CHINESE])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_text_in_another_encoding(encoding: str, mark: str, text: str) -> None:
    convert("my text.txt", (mark + text).encode(encoding), text)


@needs_tools
def test_a_text_in_an_encoding_of_single_bytes() -> None:
    convert("latin.md", TEXT.encode("latin1"), TEXT)
    command = get_command("other.txt", RUSSIAN.encode("koi8-r")).replace("latin1", "koi8-r")
    assert run_conversion(command) == RUSSIAN  # in the error, latin1 is only an example


@needs_tools
@pytest.mark.parametrize("module", [gzip, bz2, lzma])
@pytest.mark.parametrize("name", ["a.txt.packed", "it's a.jsonl.packed", "no ending"])
def test_a_compressed_text(module: Any, name: str) -> None:
    text = json.dumps({"text": TEXT}) if "jsonl" in name else TEXT
    convert(name, module.compress(text.encode()), TEXT)


@needs_tools
@pytest.mark.slow
def test_compressed_standard_input() -> None:
    """The command in the error reads the copy of standard input that is in the cache."""
    command = [sys.executable, "-m", "nanogpt", "data", "-"]
    answer = subprocess.run(command, input=gzip.compress(TEXT.encode()), capture_output=True)
    assert answer.returncode == 2
    assert run_conversion(answer.stderr.decode().rpartition("with: ")[2]) == TEXT


def test_the_advised_command_leaves_out_a_name_that_is_no_file() -> None:
    with pytest.raises(UserError, match=r"^standard input is a gzip file, .*: gzip -dc FILE > new"):
        [*decode_utf8(io.BytesIO(gzip.compress(b"text")), "standard input")]


def make_binary(kind: str) -> bytes:
    """Return the content of a file that is not text."""
    raw = io.BytesIO()
    if kind in ("zip", "docx"):
        with zipfile.ZipFile(raw, "w") as archive:
            archive.writestr("word/document.xml", TEXT)
    elif kind == "tar":
        with tarfile.open(fileobj=raw, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
    elif kind == "sqlite":
        with sqlite3.connect("database") as database:
            database.execute("create table a (b)")
        database.close()
        return Path("database").read_bytes()
    elif kind == "safetensors":
        return safetensors.numpy.save({"a": np.arange(99.0)})
    else:
        plt.figure(figsize=(1, 1)).savefig(raw, format=kind)
    return raw.getvalue()


@pytest.mark.parametrize("kind", ["zip", "docx", "tar", "sqlite", "png", "jpg", "safetensors"])
def test_a_file_without_text(kind: str) -> None:
    file = Path("a file." + kind)
    file.write_bytes(make_binary(kind))
    with pytest.raises(UserError) as raised:
        load_corpus(str(file))
    assert re.fullmatch(
        r"a file.\w+ is an? .+, not text: save its text as a file in UTF-8", str(raised.value)
    )


def test_a_parquet_file_needs_its_ending() -> None:
    parquet.write_table(pyarrow.table({"text": ["né", "终"]}), "my.txt")
    with pytest.raises(UserError, match=r"^my.txt is a Parquet file: give it a name that ends in"):
        load_corpus("my.txt")
    Path("my.txt").rename("my.parquet")
    assert load_corpus("my.parquet", separator="|").text() == "né|终"


@pytest.mark.parametrize(
    "text", ["%PD", "PK", "BZh", "a\0b c d e f", "\0", "a" * 5000 + "\0\0", "ÿþ", "1\0" + TEXT]
)
def test_a_text_that_resembles_another_format_is_read(text: str) -> None:
    Path("a.txt").write_bytes(text.encode())
    assert load_corpus("a.txt").text() == text


def test_a_pdf_file() -> None:
    Path("a.pdf").write_bytes(b"%PDF-1.4\n")
    with pytest.raises(
        UserError, match=r"a.pdf is a PDF file, not .* pdftotext a.pdf - > new.txt$"
    ):
        load_corpus("a.pdf")


def get_command(name: str, raw: bytes) -> str:
    """Return the command in the error about a file with this content."""
    Path(name).write_bytes(raw)
    with pytest.raises(UserError, match="with: ") as raised:
        load_corpus(name)
    return str(raised.value).rpartition("with: ")[2]


def run_conversion(command: str) -> str:
    """Run a command in a shell, and return the text of the file that the command creates."""
    subprocess.run(command, shell=True, check=True)
    return load_corpus(shlex.split(command)[-1]).text()


def convert(name: str, raw: bytes, text: str) -> None:
    assert run_conversion(get_command(name, raw)) == text
