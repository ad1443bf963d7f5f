"""Writes checkpoints one at a time; on a GPU, in a background thread."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Self


class BackgroundWriter:
    """Does what writes checkpoints in order, on a GPU beside the training; raises its errors."""

    def __init__(self, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception) if failed else nullcontext():
            self.wait()

    def submit(self, job: Callable[[], object]) -> None:
        """Do a job now, or as soon as those before are done. Raises what one of them raised."""
        if self._pool is None:
            job()
        else:
            # A disk that is too slow for the checkpoints slows the training, not fills the memory.
            self.wait(leave=3)
            self._pending.append(self._pool.submit(self._do, job))

    def _do(self, job: Callable[[], object]) -> None:
        """Do a job, unless one before it failed: each counts on those before."""
        if not self._failed:
            try:
                job()
            except BaseException:
                self._failed = True
                raise

    def wait(self, leave: int = 0) -> None:
        """Return when no more than so many jobs are left. Raises what one of them raised."""
        while self._pending and (len(self._pending) > leave or self._pending[0].done()):
            self._pending.popleft().result()
