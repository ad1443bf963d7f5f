"""During training, the first signal is recorded; outside training, a signal raises an exception."""

import signal
import threading

import pytest

from nanogpt.errors import Interrupted
from nanogpt.system.interrupts import SIGNALS, Interrupts, raise_interrupted


@pytest.fixture(autouse=True)
def _restore_default_handler() -> None:
    """Restore the default handler of SIGINT, because a background job of a shell ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_recorded(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        assert interrupts.received is None
        signal.raise_signal(number)
        assert interrupts.received == number


def test_a_second_interrupt_is_raised_at_once() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT


def test_the_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.received is None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_records_nothing_and_does_not_fail() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with Interrupts():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.parametrize("number", [n for n in SIGNALS if n != signal.SIGINT])
def test_a_signal_that_would_kill_the_process_raises_interrupted(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as raised, raise_interrupted():
        signal.raise_signal(number)
    assert (str(raised.value), raised.value.status) == ("interrupted", 128 + number)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_ctrl_c_and_ignored_signals_keep_their_effect() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with raise_interrupted():
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt) as raised:
                signal.raise_signal(signal.SIGINT)
        assert not isinstance(raised.value, Interrupted)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
