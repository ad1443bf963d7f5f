"""Fixtures for the tests in this directory: directories with trained runs."""

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.cli.main import main
from nanogpt.text.tokenizers import make_tokenizer

from .cases import TRAIN, make_files


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two texts and four runs; the newest run is `tiny`."""
    directory = tmp_path_factory.mktemp("trained")
    text = "".join(chr(97 + n * n % 11) + " " * (n % 5 == 0) for n in range(3000))
    (directory / "words.txt").write_text(text)
    (directory / "other.txt").write_text(text[::-1])
    runs = {
        "other": "--data other.txt",
        "bytes": "--tokenizer byte",
        "short": "--model.block-size 8",
    }
    for name, options in {**runs, "tiny": ""}.items():
        command = shlex.split(f"{TRAIN} --name {name} {options}")
        with contextlib.chdir(directory):
            main(command)
    return directory


@pytest.fixture
def world(trained: Path) -> Path:
    """The working directory, which contains a copy of the directory `trained` and more files."""
    shutil.copytree(trained, ".", dirs_exist_ok=True)
    make_files()
    Path("prompt.txt").write_text("abd")
    Path("odd name").mkdir()
    Path("odd name/a.txt").write_text("a text")
    Path("empty.json").write_text("{}")
    tokenizer = make_tokenizer("runs/tiny/best/tokenizer.json", [], [])
    ids = np.array(tokenizer.encode(Path("words.txt").read_text()), dtype=np.uint16)
    odd = ids.view(np.uint8)[:-1]
    arrays: dict[str, Any] = {"tokens": ids, "odd": odd, "bytes": ids + 97}
    for name, array in arrays.items():
        Path(name).mkdir()
        array.tofile(f"{name}/train.bin")
        array.tofile(f"{name}/val.bin")
    return Path()
