"""The worker drops outdated questions, and caches answers."""

import asyncio
import threading

import pytest

from nanogpt.lab import worker as module
from nanogpt.lab.worker import Check, Outdated, Worker


def test_a_later_turn_makes_earlier_questions_outdated() -> None:
    worker, started, release = Worker(), threading.Event(), threading.Event()

    def first(check: Check) -> bytes:
        started.set()
        release.wait(10)
        check()
        return b"first"

    async def ask() -> list[object]:
        running = asyncio.create_task(worker.ask("view", 1, ("a",), first))
        await asyncio.to_thread(started.wait, 10)
        waiting = asyncio.create_task(worker.ask("view", 1, ("b",), lambda _: b"second"))
        await asyncio.sleep(0)
        newest = asyncio.create_task(worker.ask("view", 2, ("c",), lambda _: b"third"))
        other = asyncio.create_task(worker.ask("other view", 1, ("d",), lambda _: b"fourth"))
        await asyncio.sleep(0)
        release.set()
        asked = running, waiting, newest, other
        return [*await asyncio.gather(*asked, return_exceptions=True)]

    one, two, *rest = asyncio.run(ask())
    assert isinstance(one, Outdated)
    assert isinstance(two, Outdated)
    assert rest == [b"third", b"fourth"]
    worker.close()


def test_answers_are_kept_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 10)
    worker, calls = Worker(), []

    def ask(key: str) -> bytes:
        def compute(_: Check) -> bytes:
            calls.append(key)
            return key.encode() * 4

        return asyncio.run(worker.ask("view", 1, (key,), compute))

    assert [ask(key) for key in "aabbca"] == [b"aaaa", b"aaaa", b"bbbb", b"bbbb", b"cccc", b"aaaa"]
    assert calls == ["a", "b", "c", "a"]
    worker.close()


def test_an_error_reaches_the_question() -> None:
    worker = Worker()

    def fail(_: Check) -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(worker.ask("view", 1, ("a",), fail))
    worker.close()
