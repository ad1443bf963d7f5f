"""What tests share: a cache of their own, and a text that nobody wrote."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.cli import main


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Corpora are rebuilt once for the tests, and nothing of the user's cache is used."""
    os.environ["NANOGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty directory and starts from the same random numbers."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text() -> str:
    """6,000 characters with structure to learn: random words out of a small vocabulary."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(40)]
    text = " ".join(draw.choice(words) + draw.choice(["", "", ",", ".\n"]) for _ in range(2000))
    return text[:6000]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    """The text in a file."""
    file = tmp_path / "words.txt"
    file.write_text(text, encoding="utf-8")
    return file


Answer = tuple[int, str, str]


@pytest.fixture
def nanogpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command: its exit status, standard output and standard error."""

    def run(*args: object) -> Answer:
        try:
            main([str(arg) for arg in args])
            status = 0
        except SystemExit as exit:
            status = int(exit.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def small() -> list[str]:
    """Flags of a run that takes a moment."""
    model = {"n-layer": 1, "n-head": 2, "n-embd": 16, "block-size": 16}
    training = {"steps": 20, "eval-every": 10, "batch-size": 4}
    flags = ["--device", "cpu"]
    for name, value in model.items():
        flags += [f"--model.{name}", str(value)]
    for name, value in training.items():
        flags += [f"--train.{name}", str(value)]
    return flags
