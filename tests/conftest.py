"""Fixtures for all tests: a separate cache, a random text, small runs."""

import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from nanogpt.cli.main import main
from nanogpt.errors import UserError
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.text.bpe import HubTokenizer, train_bpe
from tests.small import SMALL
from tests.texts import LANGUAGES

settings.register_profile("nanogpt", deadline=None)  # no time limit, because a machine may be slow
settings.load_profile("nanogpt")

# SIGINT is ignored in a background job of a shell, and SIGHUP is ignored under nohup. Restore the
# default handlers, because the processes that tests start inherit ignored signals.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # usually one process per core, so one thread is enough
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for processes that tests start


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests with the marker gpu on a machine without a GPU, except in Triton's interpreter."""
    can_run = torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ
    if item.get_closest_marker("gpu") and not can_run:
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a new cache; all worker processes share it, so each corpus is built only once."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    os.environ["NANOGPT_CACHE"] = str(directory / "cache")
    # The usual directory may have code for the processor of another machine.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory / "inductor")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NANOGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test in an empty directory and with the same random seed."""
    monkeypatch.chdir(tmp_path)
    torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _forward_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show paths in error messages with forward slashes, even on Windows."""
    if os.name == "nt":
        monkeypatch.setattr(
            UserError, "__str__", lambda error: ValueError.__str__(error).replace(os.sep, "/")
        )


@pytest.fixture(scope="session")
def text() -> str:
    """A text of 6,000 characters: random words from a vocabulary of 40 words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(40)]
    text = " ".join(draw.choice(words) + draw.choice(["", "", ",", ".\n"]) for _ in range(2000))
    return text[:6000]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    """A file that contains the text of the fixture `text`."""
    file = tmp_path / "words.txt"
    file.write_text(text, encoding="utf-8", newline="\n")
    return file


@pytest.fixture(scope="session")
def bpe() -> HubTokenizer:
    """A small tokenizer, trained on texts in four languages and on emoji."""
    return train_bpe(LANGUAGES * 3, 400)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a local web server for the directory www."""
    (tmp_path / "www").mkdir()

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


Answer = tuple[int, str, str]
POSIX_OPTIONS: dict[str, Any] = {
    "start_new_session": True,  # a separate process group, as in a terminal
}
if os.name != "posix":
    POSIX_OPTIONS.clear()


@pytest.fixture
def nanogpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """A function that runs a nanogpt command in this process.

    The function returns (exit status, standard output, standard error).
    """

    def run(*args: object) -> Answer:
        try:
            main([str(arg) for arg in args])
            status = 0
        except SystemExit as exit:
            status = int(exit.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(os.sep, "/")

    return run


@pytest.fixture
def process() -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """A context manager that starts nanogpt in a new process, and kills this process at the end."""

    @contextmanager
    def run(*args: object) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-m", "nanogpt", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **POSIX_OPTIONS,
        ) as started:
            try:
                yield started
            finally:
                started.kill()

    return run


@pytest.fixture
def small() -> list[str]:
    """Flags of a run that takes less than a second."""
    model = {"n-layer": 1, "n-head": 2, "n-embd": 16, "block-size": 16}
    training = {"steps": 20, "eval-every": 10, "batch-size": 4}
    flags = ["--device", "cpu", "--sample-tokens", "20"]
    for name, value in model.items():
        flags += [f"--model.{name}", str(value)]
    for name, value in training.items():
        flags += [f"--train.{name}", str(value)]
    return flags


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    """The configuration of a run that takes about a second."""
    return RunConfig(
        name="small",
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=SMALL,
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for a copy of the trained run, so that the fixture `run` trains only once."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run(nanogpt: Callable[..., Answer], small: list[str], text_file: Path, trained: Path) -> Path:
    """The directory of a run; the first test trains this run, and later tests get a copy."""
    template, recorded = trained / "mine", trained / "path of the text"
    if not template.exists():
        status, _, err = nanogpt("train", "--data", text_file, "--out", "mine", *small)
        assert (status, err) == (0, "")
        shutil.copytree("mine", template)
        recorded.write_text(json.dumps(str(text_file)), encoding="utf-8")
        return Path("mine")
    shutil.copytree(template, "mine", copy_function=shutil.copy)
    old, new = recorded.read_text(encoding="utf-8"), json.dumps(str(text_file))
    sums = Path("mine/last/SHA256SUMS")
    for file in Path("mine/run.json"), Path("mine/last/training.json"):
        before = file.read_bytes()
        after = before.replace(old.encode(), new.encode())
        assert after != before
        file.write_bytes(after)
        old_hash, new_hash = (hashlib.sha256(data).hexdigest() for data in (before, after))
        sums.write_text(sums.read_text().replace(old_hash, new_hash), newline="\n")
    return Path("mine")
