"""Signals that ask a run to end: noticed, so that the step under way can be finished and saved."""

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Within it, the first SIGINT or SIGTERM is only noted; the second does what it always did.

    A signal that was ignored before, as with nohup, stays ignored. Outside the main thread, where
    Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()
