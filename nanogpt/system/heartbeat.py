"""Notices that a process of a run was stopped, has failed, or was lost with its machine.

system/distributed.py connects the processes.
"""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import Stopped

BEAT, MISSED_BEATS, GRACE_BEATS = 1.5, 10, 7
"""Within watch(), each process counts every 1.5 s. A process is killed if it misses ten counts, or
if it is behind another process and makes no progress during ten counts. If it cannot be
killed, the others end after seven more counts."""
OUTSIDE, FAILED = b"outside", b"failed"
"""The values of a process that is not within watch(), and of one that left it with an error."""
SEE_MESSAGE = ": see its message"


class Lost(Stopped):
    """Another process of the run has ended, or does not answer."""


def make_lost(advice: str = SEE_MESSAGE) -> Lost:
    """Return the error for a lost process."""
    return Lost("another process of this run has ended, or does not answer", advice)


@dataclass
class Peers:
    """The processes of a run."""

    rank: int
    """The number of this process."""
    processes: list[tuple[str, int, int]]
    """For each process: the host, the process ID of torchrun, and the ID of the process itself."""
    store: Any
    """A torch.distributed.Store: key-value pairs that all processes can read and write."""
    progress: int = 0
    """The number of points in training steps that this process has passed. All processes pass the
    same points, in the same order."""

    def kill(self, ranks: Iterable[int]) -> None:
        """Kill those of these processes that the torchrun of this process has started."""
        for host, parent, pid in [self.processes[rank] for rank in ranks]:
            if (host, parent) == (platform.node(), os.getppid()):
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)

    @contextmanager
    def watch(self, advice: str, before_end: Callable[[], object]) -> Iterator[None]:
        """Within this context, if one process is stopped or lost, all of them end.

        Each process has a thread that counts, and reads the counts and the progress of all
        processes. The processes of the same torchrun kill a lost one, so that communication with it
        raises Lost. If a process, or the machine that keeps the counts, is still lost after
        GRACE_BEATS, the thread prints a message with `advice`, calls `before_end`, and ends this
        process. It does the same if another process has failed, for example because it lacks
        memory, and this one still waits for it after GRACE_BEATS.
        """
        try:
            self.store.set(_key(self.rank), f"0 {self.progress}")
        except RuntimeError:
            raise make_lost() from None
        has_left = threading.Event()
        thread = threading.Thread(
            target=self._count, args=(advice, before_end, has_left), daemon=True
        )
        thread.start()
        final = OUTSIDE
        try:
            yield
        except Exception as error:
            if isinstance(error, Lost) or not isinstance(error, Stopped):
                final = FAILED  # all processes raise the other kinds of Stopped together
            raise
        finally:
            has_left.set()
            thread.join(timeout=5)
            if not thread.is_alive():  # otherwise, the store does not answer
                with suppress(RuntimeError):
                    self.store.set(_key(self.rank), final)

    def is_first_failure(self) -> bool:
        """Wait 2 s, then return whether no process of a lower rank has failed.

        If the store does not answer, return True.
        """
        found: list[bytes] = []

        def read() -> None:
            with suppress(RuntimeError):
                found.extend(self.store.multi_get([_key(rank) for rank in range(self.rank)]))

        time.sleep(2)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(timeout=3)
        return FAILED not in found

    def _count(
        self, advice: str, before_end: Callable[[], object], has_left: threading.Event
    ) -> None:
        """Count until this process has left watch(); see there."""
        size = len(self.processes)
        keys = [_key(number) for number in range(size)]
        counts, earlier, changed, beat = [OUTSIDE] * size, [0] * size, [0] * size, 0
        patience = (MISSED_BEATS + GRACE_BEATS) * BEAT

        def end(prints: bool = True) -> None:
            if not has_left.is_set():
                if prints:
                    print(f"nanogpt: {make_lost(advice)}", file=sys.stderr, flush=True)
                with suppress(Exception):
                    before_end()
                os._exit(1)  # the main thread is waiting, and cannot raise an exception

        while not has_left.wait(BEAT):
            beat += 1
            timer = threading.Timer(patience, end)  # the machine with the store may be lost
            timer.daemon = True
            timer.start()
            try:
                self.store.set(keys[self.rank], f"{beat} {self.progress}")
                found = self.store.multi_get(keys)
            except RuntimeError:  # torchrun of the first machine, which keeps the store, has ended
                has_left.wait(patience)
                end()
                return
            timer.cancel()
            is_inside = [count not in (OUTSIDE, FAILED) for count in found]
            passed = [int(c.split()[1]) if i else 0 for c, i in zip(found, is_inside, strict=True)]
            # A process that no longer counts may have been further than those that wait for it.
            furthest = max(
                (passed[number] for number in range(size) if found[number] != counts[number]),
                default=0,
            )
            for number, count in enumerate(found):
                hangs = passed[number] < furthest and passed[number] == earlier[number]
                if count == FAILED:
                    changed[number] = min(changed[number], beat - MISSED_BEATS)
                elif count == OUTSIDE or (count != counts[number] and not hangs):
                    changed[number] = beat
            counts, earlier, missed = found, passed, [beat - last for last in changed]
            lost = {number for number, beats in enumerate(missed) if beats >= MISSED_BEATS}
            self.kill(number for number in lost if counts[number] != FAILED)
            if max(missed) >= MISSED_BEATS + GRACE_BEATS:
                end(prints=self.rank == min({*range(size)} - lost))


def mark_outside(store: Any, rank: int) -> None:
    """Store that this process is not within watch()."""
    store.set(_key(rank), OUTSIDE)


def _key(number: int) -> str:
    """Return the key of a process's count."""
    return f"nanogpt/count/{number}"
