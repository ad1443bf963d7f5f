"""Computes answers one at a time, drops outdated questions, and caches answers."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

CACHE_BYTES = 50_000_000
"""Memory for cached answers; the least recently used answers are dropped."""


class Outdated(Exception):
    """The page has asked a newer question, so nobody waits for this answer."""


Check = Callable[[], None]
"""Raises Outdated if the answer is not needed any more; long computations call it often."""


class Worker:
    """One thread that computes answers, so that two answers never compete for the processor.

    Each question belongs to a view in one browser tab and has a number, called its turn. If a
    question with a later turn arrives for the same view, the earlier questions of the view are
    outdated.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "lab-worker")
        self._turns: dict[str, int] = {}
        self._answers: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    async def ask(
        self, view: str, turn: int, key: tuple[object, ...], compute: Callable[[Check], bytes]
    ) -> bytes:
        """Return compute(check), or the cached answer to an earlier question with the same key.

        Raises Outdated if a question with a later turn arrives for the same view before the answer
        is ready.
        """
        with self._lock:
            self._turns[view] = max(turn, self._turns.get(view, 0))
            if len(self._turns) > 1000:
                self._turns.pop(next(iter(self._turns)))
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]

        def check() -> None:
            if self._turns.get(view, 0) > turn:
                raise Outdated

        def work() -> bytes:
            check()
            answer = compute(check)
            self._keep(key, answer)
            return answer

        return await self.run(work)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return function(*args), computed in the worker thread. Only this thread uses models.

        The functions that compute answers may put hooks on a model, so a second thread must not use
        the model at the same time.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _keep(self, key: tuple[object, ...], answer: bytes) -> None:
        with self._lock:
            if key not in self._answers:
                self._answers[key] = answer
                self._bytes += len(answer)
            while self._bytes > CACHE_BYTES:
                _, dropped = self._answers.popitem(last=False)
                self._bytes -= len(dropped)

    def close(self) -> None:
        """Drop the waiting questions. The thread ends when it has answered the current question."""
        self._thread.shutdown(wait=False, cancel_futures=True)
