"""If a text is not in the cache, the error shows a command that downloads the text."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.text.corpora import load_corpus

from .cases import follows


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a local web server for the directory `served`."""

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory="served")  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    Path("served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def follow(data: str, column: str, separator: str) -> None:
    """Try to load a text that is not cached, run the command in the error, and load the text."""
    with pytest.raises(UserError, match="is not in the cache: download it with `") as raised:
        load_corpus(data, column, separator, may_download=False)
    command = str(raised.value).rstrip("`").rpartition("`")[2]
    assert command.startswith("nanogpt ")
    assert "\n" not in command  # an error is printed on one line
    python = f"{sys.executable} -m {command}"
    subprocess.run([str(shutil.which("bash")), "-c", python], check=True, capture_output=True)
    text = load_corpus(data, column, separator, may_download=False).text()
    assert text == f"one{separator}two"


@follows("hf:a/b is not in the cache")
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is missing")
@pytest.mark.parametrize(
    ("column", "separator"),
    [("text", "\n"), ("a column", "$(a) \t\\n"), ("it's", "\n'\"\n"), ("text", "")],
)
def test_a_dataset_that_is_not_in_the_cache(cache: Path, column: str, separator: str) -> None:
    pytest.importorskip("datasets")
    Path("rows").mkdir()
    rows = (json.dumps({column: text}) for text in ("one", "two"))
    Path("rows/train.jsonl").write_text("\n".join(rows))
    follow(f"hf:{Path('rows').resolve()}", column, separator)


@follows("https://example.org/a.txt is not in the cache")
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is missing")
@pytest.mark.parametrize("query", ["", "?a=1&b=2;c"])
def test_a_url_that_is_not_in_the_cache(cache: Path, server: str, query: str) -> None:
    rows = '{"body": "one"}\n{"body": "two"}\n'
    Path("served/a.jsonl").write_text(rows)
    follow(f"{server}/a.jsonl{query}", "body", "|")
