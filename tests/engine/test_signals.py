"""Signals ask, and are handed back to whoever had them."""

import os
import signal
import threading

import pytest

from sail_train.engine.signals import EXIT_SAVED, SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.flag == 0 and stop.received is None
        os.kill(os.getpid(), number)
        assert stop.flag == 1 and stop.received == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == number.name, "a second one changes nothing: a save under way completes"
    assert signal.getsignal(number) is before


def test_the_third_ctrl_c_stops_at_once() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_it_only_waits() -> None:
    flags = []

    def run() -> None:
        with StopRequest() as stop:
            flags.append(stop.flag)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert flags == [0.0]


def test_the_exit_code_says_try_again() -> None:
    assert EXIT_SAVED == os.EX_TEMPFAIL
