"""GPT-2's tokenizer: its download, and its ids compared with those of `transformers`."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from transformers import GPT2Tokenizer

from nanogpt.errors import UserError
from nanogpt.text import gpt2
from nanogpt.text.bpe import HubTokenizer, train_bpe
from nanogpt.text.download import cache_directory
from nanogpt.text.tokenizers import make_tokenizer
from tests.texts import LANGUAGES


@pytest.fixture
def files(cache: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files in the format of GPT-2's, with a small vocabulary, on a local web server."""
    model = train_bpe(LANGUAGES * 3, 400).to_json()["model"]
    vocabulary = model["vocab"] | {gpt2.END_OF_TEXT: 400}
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n"
    found = []
    for name, text in ((gpt2.MERGES, merges), (gpt2.VOCABULARY, json.dumps(vocabulary))):
        file = Path("www", name)
        file.write_text(text, "utf-8", newline="\n")
        monkeypatch.setitem(gpt2.SHA256, name, hashlib.sha256(file.read_bytes()).hexdigest())
        found.append(file)
    monkeypatch.setattr(gpt2, "ADDRESS", server)
    return found


def test_the_ids_are_those_of_transformers(files: list[Path]) -> None:
    tokenizer = make_tokenizer("gpt2", (), ())
    Path("hub").mkdir()
    for file, name in zip(files, ("merges.txt", "vocab.json"), strict=True):
        Path("hub", name).write_bytes(file.read_bytes())
    expected = GPT2Tokenizer.from_pretrained("hub", local_files_only=True)
    assert tokenizer.vocab_size == len(expected) == 401
    for text in (*LANGUAGES, "  two  spaces\n\n", "", f"a{gpt2.END_OF_TEXT}b"):
        assert tokenizer.encode(text) == expected.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert isinstance(tokenizer, HubTokenizer)
    assert tokenizer._tiktoken  # the fast library can encode
    assert 400 in tokenizer.encode(f"a{gpt2.END_OF_TEXT}b")
    assert tokenizer.token_bytes(400) == gpt2.END_OF_TEXT.encode()


def test_the_files_are_downloaded_once(files: list[Path]) -> None:
    expected = make_tokenizer("gpt2", (), ()).to_json()
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    assert make_tokenizer("gpt2", (), ()).to_json() == expected
    cached = cache_directory() / f"gpt2-{gpt2.MERGES}"
    cached.write_bytes(b"damaged")  # then it is downloaded again
    files[0].write_bytes(contents[0])
    assert make_tokenizer("gpt2", (), ()).to_json() == expected


@pytest.mark.parametrize("problem", ["no network", "changed"])
def test_the_advice_after_a_failed_download_works(
    files: list[Path], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer("gpt2", (), ())
    (cache_directory() / f"gpt2-{gpt2.VOCABULARY}").unlink()
    right = files[1].read_bytes()
    files[1].write_bytes(right + b" ")
    if problem == "no network":
        monkeypatch.setattr(gpt2, "ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(UserError) as error:
        make_tokenizer("gpt2", (), ())
    message = str(error.value)
    start = "" if problem == "changed" else "cannot download "
    assert message.startswith(f"{start}{gpt2.ADDRESS}/encoder.json ")
    assert message.endswith(", or use another tokenizer, such as bpe:8192")
    path = message.partition("save it as ")[2].partition(", or")[0]
    assert not os.path.exists(path)
    Path(path).write_bytes(right)
    assert make_tokenizer("gpt2", (), ()).vocab_size == 401
