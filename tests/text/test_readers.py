"""Text from files of every kind and in many languages, and files that are refused."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from nanogpt.errors import UserError
from nanogpt.runs.directory import make_run_directory
from nanogpt.studies.trial import make_directory
from nanogpt.text.readers import decode_utf8, find_files, read_files, read_text
from tests.installing import assert_installs
from tests.platforms import needs_links, posix_only

LANGUAGES = {
    "ar.txt": "أكون أو لا أكون",
    "emoji.txt": "👩‍👩‍👧 🏴‍☠️",
    "hi.txt": "होना या न होना",
    "windows.txt": "one\r\ntwo\r\n",
    "zh.txt": "生存还是毁灭\n",
    "zero.txt": "a\x00b, and no newline at the end",
}


def read_texts(data: str, column: str, separator: str) -> str:
    """Read the text of all files that `data` names."""
    return "".join(read_files(find_files(data), column, separator))


def make_run(directory: Path) -> None:
    """Write files of a run; nanogpt must not read them as text."""
    (directory / "last").mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl", "last/config.md"):
        (directory / name).write_text('{"step": 0}\n')


def make_started_run(directory: Path) -> None:
    make_run_directory(directory, "tiny")[1].release()
    (directory / "metrics.jsonl").write_text('{"step": 0}\n')


def make_study(directory: Path) -> None:
    make_directory(directory)
    (directory / "ladder.md").write_text("| rung |")


def make_hidden(directory: Path) -> None:
    (directory / ".cache").mkdir(parents=True)
    (directory / ".cache" / "a.txt").write_text("hidden")
    (directory / ".b.txt").write_text("hidden")


@pytest.mark.parametrize("make", [make_run, make_started_run, make_study, make_hidden])
def test_files_of_nanogpt_and_hidden_files_are_not_read_as_text(
    folder: Path, make: Callable[[Path], None]
) -> None:
    before, pattern = find_files(str(folder)), str(folder / "**" / "*.[mtj]*")
    matches = find_files(pattern)
    make(folder / "runs" / "one")
    assert find_files(str(folder)) == before
    assert find_files(pattern) == matches


def test_the_cache_is_not_read_as_text(folder: Path) -> None:
    before, cache = find_files(str(folder)), folder / "cache"
    cache.mkdir()
    (cache / "web-1.txt").write_text("cached")
    assert find_files(str(folder), cache) == before


def test_the_case_of_a_file_extension_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "B.JsonL").write_text('{"text": "b"}')
    assert read_texts(str(tmp_path), "text", "|") == "a|b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a picture and with texts in many languages."""
    home = tmp_path / "texts"
    (home / "below").mkdir(parents=True)
    for name, text in LANGUAGES.items():
        (home / name).write_bytes(text.encode())
    (home / "below" / "a.md").write_bytes(b"# A\n")
    (home / "picture.png").write_bytes(b"\x89PNG")
    return home


def test_a_directory_gives_its_texts_sorted_by_name(folder: Path) -> None:
    first, *others = (LANGUAGES[name] for name in sorted(LANGUAGES))
    expected = [first, "# A\n", *others]
    assert read_texts(str(folder), "text", "\n\n") == "\n\n".join(expected)
    assert read_texts(str(folder), "text", "|") == "|".join(expected)


def test_an_empty_file_is_left_out(folder: Path) -> None:
    whole = read_texts(str(folder), "text", "|")
    for name in ("a.txt", "j.txt", "zzz.txt"):
        (folder / name).touch()
    (folder / "below" / "bom.txt").write_bytes(b"\xef\xbb\xbf")
    (folder / "k.jsonl").write_text('{"text": ""}\n')
    assert read_texts(str(folder), "text", "|") == whole


@needs_links
def test_a_broken_link_is_refused(folder: Path) -> None:
    (folder / "gone.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*gone.txt: No such file"):
        read_texts(str(folder), "text", "|")


@posix_only
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_or_directory_is_refused(folder: Path) -> None:
    for path in (folder / "below", folder / "zh.txt"):
        path.chmod(0)
        try:
            with pytest.raises(UserError, match=rf"cannot read .*{path.name}: Permission denied"):
                read_texts(str(folder), "text", "|")
        finally:
            path.chmod(0o700)


def test_a_pattern_gives_the_files_that_match_it(folder: Path) -> None:
    assert (
        read_texts(f"{folder}/*h*.txt", "text", "|")
        == LANGUAGES["hi.txt"] + "|" + (LANGUAGES["zh.txt"])
    )
    assert read_texts(f"{folder}/**/*.md", "text", "|") == "# A\n"
    with pytest.raises(UserError, match=r"no file matches .*\*\.rs: name another pattern"):
        read_texts(f"{folder}/*.rs", "text", "|")


def test_an_existing_file_with_a_name_like_a_pattern_is_read(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("this one")
    assert read_texts(str(tmp_path / "a[1].txt"), "text", "|") == "this one"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes("\ufeffné\ufeff".encode())
    assert read_text(tmp_path / "bom.txt") == "né\ufeff"
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(UserError, match="is not UTF-8: byte 5 is 0xff"):
        read_text(tmp_path / "bom.txt")


def test_every_row_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    rows = [{"text": "né\nx", "n": 1}, {"text": "终\u2028", "n": 2}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file = tmp_path / "a.jsonl"
    file.write_text(lines[0] + "\n\n" + lines[1], encoding="utf-8")
    assert read_texts(str(file), "text", "|") == "né\nx|终\u2028"
    (tmp_path / "b.txt").write_text("end")
    assert read_texts(str(tmp_path), "text", "|") == "né\nx|终\u2028|end"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl, line 2: not JSON; fix or delete the line"),
        ("[1]", "a.jsonl, line 2: not a JSON object; fix or delete the line"),
        (
            '{"body": "x", "n": 1}',
            "line 2: there is no column 'text'; choose another with --column .body., or fix",
        ),
        (
            r'{"text": "\ud800"}',
            "a.jsonl, line 2: the text has an unpaired surrogate; fix or",
        ),
        (
            '{"text": 7}',
            "line 2: the column 'text' is not text; no other column contains text; fix the row",
        ),
        (
            '{"text": null, "body": "x"}',
            "a.jsonl, line 2: the column 'text' is null; fix or delete the row$",
        ),
        (
            json.dumps({f"c{i:02}": "x" for i in range(30)}),
            r"--column \(c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, …\), or fix the row$",
        ),
    ],
)
def test_invalid_jsonl_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(UserError, match=message):
        read_texts(str(tmp_path / "a.jsonl"), "text", "|")


def test_every_row_of_a_parquet_file_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2], "body": ["né", "终"]}), file)
    assert read_texts(str(file), "body", "|") == "né|终"
    with pytest.raises(
        UserError,
        match=r"a.parquet: there is no column 'text'; choose another with --column \(body\), or",
    ):
        read_texts(str(file), "text", "|")
    with pytest.raises(
        UserError, match=r"row 0: the column 'n' is not text; choose another with --column \(body"
    ):
        read_texts(str(file), "n", "|")
    bad = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(np.array([0, 2], dtype=np.int32)), pyarrow.py_buffer(b"a\xff")
    )
    parquet.write_table(pyarrow.table({"text": bad}), file)
    with pytest.raises(UserError, match=r"cannot read .*a.parquet: .*utf-8.*; name a text file"):
        read_texts(str(file), "text", "|")
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"cannot read .*a.parquet: .*; name a text file"):
        read_texts(str(file), "body", "|")


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["né"]}), file)
    error = "needs the library pyarrow: install it with `pip install"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UserError, match=error) as raised:
            read_texts(file, "text", "|")
    assert_installs(str(raised.value), "pyarrow")
    assert read_texts(file, "text", "|") == "né"


def test_a_directory_without_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print()")
    with pytest.raises(UserError, match=r"is a directory without text files .* such as '.*\*\.py'"):
        read_texts(str(tmp_path), "text", "|")


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", ["To be, or not\n", "问题 to be, 生存\n", "é à ü ROMEO:\n"])
def test_the_error_about_utf_16_or_utf_32_names_the_encoding(text: str, encoding: str) -> None:
    """The texts have no byte-order mark."""
    raw = io.BytesIO((text * 9).encode(encoding))
    with pytest.raises(UserError, match=f"own.txt is {encoding}, not text in UTF-8: convert it"):
        list(decode_utf8(raw, "own.txt"))
