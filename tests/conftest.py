"""What tests share: a cache of their own, and a text that nobody wrote."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from nanogpt.cli.main import main
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.text.bpe import HubTokenizer, train_bpe
from tests.small import SMALL
from tests.texts import LANGUAGES

settings.register_profile("nanogpt", deadline=None)  # how long something takes is no test
settings.load_profile("nanogpt")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Corpora are rebuilt once for the tests, and nothing of the user's cache is used."""
    os.environ["NANOGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


@pytest.fixture(scope="session")
def bpe() -> HubTokenizer:
    """A small one, of five languages."""
    return train_bpe(LANGUAGES * 3, 400)


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
def process() -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Run a command in a process of its own, which does not outlive the test."""

    @contextmanager
    def run(*args: object) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-m", "nanogpt", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that it is the first of a group, as in a terminal
            # Tests started in the background of a shell ignore SIGINT, as would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as started:
            try:
                yield started
            finally:
                started.kill()

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


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    """A run of a second."""
    return RunConfig(
        name="small",
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=SMALL,
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5),
    )


@pytest.fixture
def run(nanogpt: Callable[..., Answer], small: list[str], text_file: Path) -> Path:
    """A run, trained by the command."""
    status, _, err = nanogpt("train", "--data", text_file, "--out", "mine", *small)
    assert (status, err) == (0, "")
    return Path("mine")
