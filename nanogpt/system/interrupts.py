"""Signals that ask a run to end; the run finishes its step and saves before it ends."""

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGBREAK")  # SIGBREAK: Ctrl-Break, on Windows only
    if name in signal.Signals.__members__
)


class Interrupts:
    """A context that records the first signal in SIGNALS; a second signal has its usual effect.

    A signal that was ignored before, as with nohup, stays ignored. Python handles signals
    only in the main thread; in another thread, this context records nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
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

    def _record(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()
