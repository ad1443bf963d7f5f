"""Signals that ask a command to end; a run first finishes its step and saves a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from ..errors import Interrupted
from . import distributed
from .agreement import agree_on_signal

SIGNALS = tuple(
    signal.Signals[name]
    # SIGHUP: the terminal was closed. SIGBREAK: Ctrl-Break, on Windows only.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if name in signal.Signals.__members__
)


@contextmanager
def raise_interrupted() -> Iterator[None]:
    """Within this context, signals in SIGNALS that normally kill the process raise Interrupted.

    So the command can remove its temporary files. SIGINT does not kill a Python process: as usual,
    it raises KeyboardInterrupt. A signal that was ignored before stays ignored.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    is_main = threading.current_thread() is threading.main_thread()
    fatal = [n for n in SIGNALS if is_main and signal.getsignal(n) == signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


class Interrupts:
    """A context that records the first signal that arrives.

    A second signal has its usual effect. But if several processes train a model, it is ignored,
    because a terminal and torchrun may both send a signal to each process. Only the signals in
    SIGNALS are recorded. A signal that was ignored before, as with nohup, stays ignored. Python
    handles signals only in the main thread; in another thread, this context records nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._seen: signal.Signals | None = None
        """The first signal of this process; others may not know it yet."""
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def agree(self) -> None:
        """If one of several processes has received a signal, let all of them have received it."""
        if distributed.size() > 1:
            # A signal that arrives during the exchange counts in the next one.
            self.received = agree_on_signal(self._seen)

    def should_stop(self) -> bool:
        """Return whether to stop before the next step.

        Several processes must stop after the same step, so they first take all planned steps.
        """
        return distributed.size() == 1 and self.received is not None

    def _record(self, number: int, _: FrameType | None) -> None:
        self._seen = self._seen or signal.Signals(number)
        if distributed.size() == 1:
            self.received = self._seen
            self.__exit__()
