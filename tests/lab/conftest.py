"""A lab that answers in this process, with one small run that has snapshots."""

import json
import shutil
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from nanogpt.lab.library import Library
from nanogpt.lab.server import Lab
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.train import train
from tests.lab.chromium import PROGRAM
from tests.small import SMALL


@dataclass
class Client:
    """Sends requests to a lab."""

    lab: Lab
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.lab.token}/"

    def request(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; return the status, the body and the headers of the answer."""
        url = path if path.startswith("http") else self.address + path
        request = urllib.request.Request(url, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    def get(self, name: str, **query: object) -> Any:
        """Send a GET request, which must succeed; return the JSON of the answer."""
        status, raw, _ = self.request(f"{name}?{urllib.parse.urlencode(query)}")
        assert status == 200, raw
        answer = json.loads(raw)
        assert not isinstance(answer, dict) or name == "runs" or "error" not in answer, answer
        return answer

    def problem(self, name: str, body: object = None, **query: object) -> str:
        """Send a request whose answer must contain an error message; return this message."""
        data = None if body is None else json.dumps(body).encode()
        status, raw, _ = self.request(f"{name}?{urllib.parse.urlencode(query)}", data)
        assert status == 200, (status, raw)
        return str(json.loads(raw)["error"])

    def post(self, name: str, body: object) -> Any:
        """Send a POST request, which must succeed; return the JSON of the answer."""
        status, raw, _ = self.request(name, json.dumps(body).encode())
        assert status == 200, raw
        return json.loads(raw)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """The directory of a run with snapshots; each test gets a copy."""
    directory = tmp_path_factory.mktemp("lab")
    file = directory / "words.txt"
    file.write_text(text, encoding="utf-8", newline="\n")
    config = RunConfig(
        data=str(file),
        out=directory / "run",
        device="cpu",
        model=SMALL,
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5, history=8),
    )
    return train(config).run.out


@pytest.fixture
def lab_run(template: Path) -> Path:
    """The directory of a run with snapshots: runs/one."""
    return shutil.copytree(template, Path("runs/one"))


@pytest.fixture
def client(lab_run: Path) -> Iterator[Client]:
    """A client of a running lab."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    lab = Lab(Library())
    app = lab.app([f"127.0.0.1:{port}"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Client(lab, port)
    server.should_exit = True
    thread.join()
    lab.worker.close()


@pytest.fixture(scope="module")  # not session, because asyncio.run() fails while a browser is open
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=PROGRAM, args=flags)
        yield started
        started.close()
