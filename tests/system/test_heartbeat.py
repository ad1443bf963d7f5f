"""Processes notice that another one has failed. tests/fast/test_lost_processes.py stops some."""

import threading
import time
from pathlib import Path

import pytest
from torch import distributed

from nanogpt.errors import Stopped
from nanogpt.system.heartbeat import FAILED, OUTSIDE, Peers, make_lost, mark_outside
from tests.fast.test_parallel import run, torchrun


def make_peers(size: int) -> list[Peers]:
    """Return the view of each process; no process has these IDs."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    for rank in range(size):
        mark_outside(store, rank)
    return [Peers(rank, [("nowhere", 0, 0)] * size, store) for rank in range(size)]


def find_value(peers: Peers) -> bytes:
    return bytes(peers.store.get(f"nanogpt/count/{peers.rank}"))


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (None, OUTSIDE),
        (Stopped("the loss is NaN"), OUTSIDE),
        (KeyboardInterrupt(), OUTSIDE),
        (make_lost(), FAILED),
        (RuntimeError("no memory"), FAILED),
        (OSError("disk full"), FAILED),
        (AssertionError(), FAILED),
    ],
)
def test_an_error_of_one_process_is_known_to_the_others(
    error: BaseException | None, value: bytes
) -> None:
    (peers,) = make_peers(1)
    try:
        with peers.watch("", lambda: None):
            assert find_value(peers) not in (OUTSIDE, FAILED)
            if error:
                raise error
    except BaseException as raised:
        assert raised is error  # noqa: PT017 (any exception)
    assert find_value(peers) == value


def test_the_first_failed_process_prints_the_message() -> None:
    first, second, third = make_peers(3)
    assert third.is_first_failure()
    second.store.set("nanogpt/count/1", FAILED)
    waiting = threading.Timer(1, lambda: first.store.set("nanogpt/count/0", FAILED))
    assert second.is_first_failure()
    assert not third.is_first_failure()
    waiting.start()  # process 0 fails a second later, for the same reason
    assert not second.is_first_failure()


def test_processes_that_count_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt.system.heartbeat.BEAT", 0.02)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    one, two = make_peers(2)
    with one.watch("", lambda: None), two.watch("", lambda: None):
        one.progress = 100
        for progress in range(10):  # behind, but not hanging
            two.progress = progress
            time.sleep(0.1)  # 50 beats in all; with a lost process, this one would end after 17
    assert not ended


def test_a_process_does_not_end_because_a_lost_one_was_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here, the lost one has no process, so the other one ends itself after the grace period."""
    monkeypatch.setattr("nanogpt.system.heartbeat.BEAT", 0.02)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    one, two = make_peers(2)
    killed: list[int] = []
    monkeypatch.setattr(Peers, "kill", lambda _, ranks: killed.extend(ranks))
    one.progress = 6
    with one.watch("", lambda: killed.append(-1)):
        two.store.set("nanogpt/count/1", "100 7")  # it was a point further
        deadline = time.monotonic() + 30
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ended
    assert set(killed) == {1, -1}


# The first process has an unfinished file; all of them fail for the same reason.
WRITER = """
import os, sys, time
from nanogpt.errors import Stopped
from nanogpt.runs.background import BackgroundWriter
from nanogpt.system import distributed as d

with d.join():
    try:
        with BackgroundWriter(True) as writer:
            writer.submit(lambda: (time.sleep(3), open("written", "w").close()))
            raise Stopped("the loss is NaN")
    except Stopped:
        assert os.path.exists("written")
"""


def test_processes_wait_for_the_files_of_the_first() -> None:
    """Otherwise, torchrun kills the first process 30 s after the others have ended."""
    Path("script.py").write_text(WRITER, "utf-8")
    command = torchrun(2)
    command[command.index("-m", 3) :] = ["script.py"]
    assert run(command)[0] == 0
