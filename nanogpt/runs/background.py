"""Writes checkpoints one at a time. If the model is on a GPU, a background thread writes them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Self

from ..system import distributed

QUEUE_LENGTH = 3
"""submit() waits while more than this number of jobs are pending. So a slow disk slows down the
training; without this limit, the pending checkpoints could fill the memory."""


class BackgroundWriter:
    """Runs jobs in order, immediately or in a background thread, and raises their errors.

    At the end of its `with` statement, it waits for all jobs. If several processes train the model,
    the first one writes the files of the run. The others ignore all jobs, and wait for the first.
    """

    def __init__(self, in_background: bool) -> None:
        self.writes = distributed.rank() == 0
        """Whether this process writes files."""
        self._pool = ThreadPoolExecutor(1) if in_background and self.writes else None
        self._pending: deque[Future[None]] = deque()
        self._has_failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with suppress(Exception) if error else nullcontext():
            self.wait()
        distributed.end_together(error)

    def submit(self, job: Callable[[], object]) -> None:
        """Run a job now, or add it to the queue. Raises the error of this or an earlier job."""
        if not self.writes:
            return
        if self._pool is None:
            job()
        else:
            self.wait(QUEUE_LENGTH)
            self._pending.append(self._pool.submit(self._run, job))

    def _run(self, job: Callable[[], object]) -> None:
        """Run a job, unless an earlier job failed: each job relies on the earlier ones."""
        if not self._has_failed:
            try:
                job()
            except BaseException:
                self._has_failed = True
                raise

    def wait(self, pending: int = 0) -> None:
        """Wait until at most `pending` jobs remain. Raises the error of a job that failed."""
        while self._pending and (len(self._pending) > pending or self._pending[0].done()):
            self._pending.popleft().result()
